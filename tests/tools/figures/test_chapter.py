"""A chapter is what the network itself makes of the shards that are there."""

import base64
import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.manifest import open_dataset
from tests.tools.conftest import train
from tools.figures.chapter import Chapter, write_chapter
from tools.figures.observer import Observer
from tools.figures.run_record import RunRecord, read_run
from tools.figures.stored_images import StoredImages

CPU = torch.device("cpu")


def told(run: RunRecord) -> Chapter:
    return write_chapter(run, CPU, sample=1000)


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))), int)


@pytest.fixture(scope="module")
def chapter(run_folder: Path) -> Chapter:
    return told(read_run(run_folder, "run"))


def test_errors_are_those_the_trainer_measured(chapter: Chapter) -> None:
    (report,) = chapter.run.reports
    assert (chapter.num_seen, chapter.num_val, chapter.remarks) == (15, 15, [])
    assert chapter.top1_error == pytest.approx(report["top1_error"])
    assert chapter.top5_error == pytest.approx(report["top5_error"])
    wrong = sum(score.num_errors for score in chapter.worst)
    assert wrong == round(15 * report["top1_error"]) and len(chapter.mistakes) == min(wrong, 12)


def test_examples_are_photographs_of_all_classes_with_the_network_s_guesses(
    chapter: Chapter,
) -> None:
    assert len(chapter.examples) == 8
    assert {example.photo.name for example in chapter.examples[:3]} == {"ant", "bee", "cat"}
    for example in chapter.examples:
        values = [guess.probability for guess in example.guesses]
        assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1)
        assert [g.name for g in example.guesses if g.correct] == [example.photo.name]


def test_neighbours_are_the_nearest_of_all_training_images(
    chapter: Chapter, shard_folder: Path
) -> None:
    """By a search through the features of every image, and by the pixels shown."""
    assert chapter.run.checkpoint is not None
    dataset, observer = open_dataset(shard_folder), Observer(chapter.run.checkpoint, CPU)
    val, trained = StoredImages(dataset, "val"), StoredImages(dataset, "train")
    (queries,), (stored,) = val.batches(np.arange(15)), trained.batches(np.arange(39))
    features = observer.see(stored.pixels).features.astype(np.float64)
    wanted = observer.see(queries.pixels).features.astype(np.float64)
    assert len(chapter.similar) == 6 and chapter.num_compared == chapter.num_train == 39
    for similar in chapter.similar:
        shown = pixels(similar.query.picture)
        query = int(np.abs(queries.pixels - shown).mean((1, 2, 3)).argmin())
        distances = np.linalg.norm(features - wanted[query], axis=1)
        nearest = np.argsort(distances, kind="stable")[:6]
        assert [photo.name for photo in similar.nearest] == [
            dataset.classes[label] for label in stored.labels[nearest]
        ]
        for photo, row in zip(similar.nearest, nearest, strict=True):
            whole = Image.fromarray(stored.pixels[row])
            small = whole.resize((128, 128), Image.Resampling.LANCZOS)
            assert np.abs(np.asarray(small, int) - pixels(photo.picture)).mean() < 8
    val.close()
    trained.close()


def test_a_bounded_sample_is_told_as_such(run_folder: Path) -> None:
    few = write_chapter(read_run(run_folder, "run"), CPU, sample=7)
    assert (few.num_seen, few.num_val, few.num_compared, few.num_train) == (7, 15, 7, 39)
    assert len(few.examples) == 7


def test_shards_that_are_gone_leave_the_kernels(run_folder: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(read_run(run_folder, "run"), shards=tmp_path / "gone")
    found = told(run)
    assert len(found.columns) == 2 and found.examples == [] and found.num_seen == 0
    assert [text for text in found.remarks if text.startswith("The shards are gone")]


def test_a_shard_that_is_gone_costs_its_own_images_alone(
    run_folder: Path, shard_copy: Path
) -> None:
    index = open_dataset(shard_copy).index("val")
    (shard_copy / "val-000000.tar").unlink()
    run = dataclasses.replace(read_run(run_folder, "run"), shards=shard_copy)
    found = told(run)
    left = int((index["shard"] != 0).sum())
    assert (found.num_seen, len(found.examples)) == (left, min(8, left)) and left > 0
    (remark,) = found.remarks
    assert remark.startswith(f"{15 - left} val images cannot be read") and "val-000000" in remark


def test_shards_of_other_classes_or_other_images_are_told(
    run_folder: Path, shard_copy: Path
) -> None:
    run = dataclasses.replace(read_run(run_folder, "run"), shards=shard_copy)
    path = shard_copy / "dataset.json"
    whole = json.loads(path.read_text())
    whole["splits"]["val"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(whole))
    found = told(run)
    assert found.num_seen == 15 and "are not those the run had (val differ)" in found.remarks[0]
    whole["classes"] = ["ant", "bee", "dog"]
    path.write_text(json.dumps(whole))
    found = told(run)
    assert found.num_seen == 0 and "'cat' in the checkpoint, 'dog'" in found.remarks[0]


def test_a_checkpoint_of_another_preset_is_shown_as_what_it_is(
    run_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    shutil.copy(other_folder / "best.safetensors", folder / "best.safetensors")
    found = told(read_run(folder, "run"))
    assert found.num_seen == 15 and len(found.columns[0][0].pictures) == 3  # of paper, 96 / 16 / 2


def test_a_network_that_diverged_is_told_and_not_drawn(run_folder: Path) -> None:
    run = read_run(run_folder, "run")
    assert run.checkpoint is not None
    model = {name: tensor.clone() for name, tensor in run.checkpoint.model.items()}
    model["conv1.weight"][0, 0, 0, 0] = torch.nan
    broken = dataclasses.replace(run.checkpoint, model=model, ema={})
    found = told(dataclasses.replace(run, checkpoint=broken))
    assert found.columns == [] and found.examples == []
    assert found.remarks == ["The network cannot be shown: its weights are not all numbers."]


def test_a_gpu_without_room_leaves_the_kernels_and_names_the_way_out(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(observer: Observer, pixels: np.ndarray) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Observer, "see", full)
    found = told(read_run(run_folder, "run"))
    assert len(found.columns) == 2 and "--device cpu" in found.remarks[0]


def test_one_column_has_one_picture(shard_folder: Path, tmp_path: Path) -> None:
    folder = train(shard_folder, tmp_path / "run", width=1 / 32, settings=("columns=1",))
    (column,) = told(read_run(folder, "run")).columns
    assert column[0].name == "All kernels"


def test_shards_on_an_object_store_are_not_fetched(run_folder: Path, in_memory: Path) -> None:
    run = dataclasses.replace(read_run(run_folder, "run"), shards=in_memory)
    assert "give a folder with --shards" in told(run).remarks[0]
