"""The evaluation command on the checkpoint of a tiny run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from tests.conftest import compute_statistics, prepare_here, write_source
from tools import evaluate, evaluation
from pipeline.manifest import open_dataset


def call(checkpoint: Path, shards: Path | str, *arguments: str | Path) -> Result:
    command = [checkpoint, "--shards", shards, "--backend", "numpy", "--device", "cpu"]
    return CliRunner().invoke(evaluate.main, [str(word) for word in [*command, *arguments]])


def test_the_errors_are_those_the_training_measured(
    run_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "errors.json"
    result = call(run_folder / "last.safetensors", shard_folder, "--json", str(path))
    assert result.exit_code == 0 and "over 15 images" in result.output
    found = json.loads(path.read_text())
    expected = json.loads((run_folder / "metrics.jsonl").read_text())
    assert (found["num_images"], found["views"], found["split"]) == (15, 1, "val")
    assert found["top1_error"] == expected["top1_error"]
    assert found["top5_error"] == expected["top5_error"] == 0.0  # three classes
    assert found["loss"] == pytest.approx(expected["val_loss"], rel=1e-5)


@pytest.mark.parametrize(("split", "num_images"), [("val", 15), ("train", 39)])
def test_ten_views_see_every_image_of_the_split(
    split: str, num_images: int, run_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "errors.json"
    arguments = ("--views", "10", "--split", split, "--json", str(path), "--batch-size", "7")
    result = call(run_folder / "last.safetensors", shard_folder, *arguments)
    assert result.exit_code == 0 and f"{split}, ten views: top-1 error" in result.output
    assert json.loads(path.read_text())["num_images"] == num_images


def test_staged_shards_of_a_store_give_the_same_errors(
    run_folder: Path, shard_folder: Path, in_memory: Path, tmp_path: Path
) -> None:
    found = []
    for shards, options in (
        (str(shard_folder), ()),
        (str(in_memory), ("--stage-dir", str(tmp_path / "stage"), "--stage-bytes", "10MB")),
    ):
        path = tmp_path / "errors.json"
        result = call(run_folder / "last.safetensors", shards, "--json", str(path), *options)
        assert result.exit_code == 0, result.output
        found.append(json.loads(path.read_text()))
        assert found[-1].pop("shards") == shards
    assert found[0] == found[1]


@pytest.mark.parametrize("views", ["1", "10"])
def test_several_checkpoints_are_told_alone_and_together(
    views: str, run_folder: Path, other_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    paths = [folder / "last.safetensors" for folder in (run_folder, other_folder)]
    alone = []
    for i, path in enumerate(paths):
        call(path, shard_folder, "--views", views, "--json", tmp_path / f"{i}.json")
        alone.append(json.loads((tmp_path / f"{i}.json").read_text()))
    result = call(paths[0], shard_folder, paths[1], "--views", views, "--json", tmp_path / "all")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [str(path) in line for path, line in zip(paths, lines)] == [True, True]
    assert "all 2 together: top-1 error" in lines[2] and len(lines) == 3
    found = json.loads((tmp_path / "all").read_text())
    for one, expected in zip(found["checkpoints"], alone, strict=True):
        assert one == expected["checkpoints"][0]
    assert [one["preset"] for one in found["checkpoints"]] == ["modern", "paper"]
    assert found["loss"] <= max(one["loss"] for one in alone)  # log is concave
    assert found["fingerprint"] == open_dataset(shard_folder).fingerprint("val")


def test_the_table_of_classes_is_complete_and_the_worst_come_first(
    run_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "errors.json"
    result = call(run_folder / "last.safetensors", shard_folder, "--per-class", "--json", path)
    header, *rows = result.output.splitlines()[1:]
    assert header.split() == ["class", "images", "top-1", "error", "top-5", "error"]
    assert sorted(row.split()[0] for row in rows) == ["ant", "bee", "cat"]
    assert {row.split()[1] for row in rows} == {"5"}
    shown = [float(row.split()[2].rstrip("%")) for row in rows]
    assert shown == sorted(shown, reverse=True)
    report = json.loads(path.read_text())
    by_name = {found["class"]: found["top1_error"] for found in report["classes"]}
    assert [round(100 * by_name[row.split()[0]], 2) for row in rows] == shown
    assert sum(by_name.values()) / 3 == pytest.approx(report["top1_error"])


def test_what_does_not_fit_is_refused_with_1(
    run_folder: Path, diverged: Path, shard_folder: Path, tmp_path: Path
) -> None:
    checkpoint = run_folder / "last.safetensors"
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:5000])
    for path, shards, options, message in (
        (checkpoint, tmp_path / "none", (), "none"),
        (tmp_path / "none", shard_folder, (), "no such checkpoint"),
        (tmp_path / "cut.safetensors", shard_folder, (), "no whole safetensors file"),
        (diverged, shard_folder, (), "nan.safetensors: fc7.weight holds values that are not"),
        (checkpoint, shard_folder, ("--split", "test"), "no split 'test'"),
        (tmp_path / "none", shard_folder, ("--json", tmp_path / "no/a.json"), "--json: there"),
    ):
        result = call(path, shards, *options)
        assert result.exit_code == 1 and message in result.output
        assert len(result.output.splitlines()) == 1


def test_shards_of_other_classes_are_refused(run_folder: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=3, val_per_class=2)
    for split in ("train", "val"):
        (source / split / "ant").rename(source / split / "dog")
    prepare_here(source, tmp_path / "shards")
    compute_statistics(tmp_path / "shards")
    result = call(run_folder / "last.safetensors", tmp_path / "shards")
    assert result.exit_code == 1 and "class 0 is 'ant' in" in result.output
    assert "last.safetensors, 'bee' in" in result.output


def test_products_of_float32_are_not_rounded_on_a_gpu(
    run_folder: Path, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training; torch's own default for convolutions is tf32."""
    asked: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(evaluation, "set_up_device", lambda *what: asked.append(what))
    assert call(run_folder / "last.safetensors", shard_folder).exit_code == 0
    assert asked == [("fp32", torch.device("cpu"))]


def test_it_runs_as_a_file_from_another_folder(
    run_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    assert os.access(evaluate.__file__, os.X_OK)
    command = [sys.executable, "-W", "error", evaluate.__file__,
               str(run_folder / "best.safetensors"), "--shards", str(shard_folder),
               "--backend", "numpy", "--device", "cpu"]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("val, centre crop: top-1 error")
