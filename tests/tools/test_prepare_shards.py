"""The command that prepares shards: run as a file from anywhere, one message, the right code."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.atomic import sole_writer
from pipeline.manifest import open_dataset
from pipeline.moments import MEAN_NAME, PCA_NAME
from tests.conftest import IMAGES_PER_SHARD, folder_bytes, tar_of_tars, write_source
from tools.prepare_shards import main as prepare_shards

ENTRY_FILE = Path(__file__).parents[2] / "tools" / "prepare_shards.py"
FEW = ["--images-per-shard", str(IMAGES_PER_SHARD), "--workers", "1"]


def run(folder: Path, *arguments: object) -> Result:
    """Runs the command in `folder`, in this process."""
    with contextlib.chdir(folder):
        return CliRunner().invoke(prepare_shards, [str(argument) for argument in arguments])


def run_file(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Runs the entry file in `folder`, as a user does."""
    command = [sys.executable, str(ENTRY_FILE), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def assert_one_error(done: Result, *parts: str) -> None:
    """One line on stderr that holds all `parts`, exit code 1."""
    assert done.exit_code == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_run_from_another_folder_it_writes_the_shards_and_the_account(
    image_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    done = run_file(tmp_path, image_folder, *FEW)
    assert done.returncode == 0, done.stderr
    expected = folder_bytes(shard_folder)
    del expected[PCA_NAME], expected[MEAN_NAME]
    assert folder_bytes(tmp_path / "shards") == expected
    rows = [line.split() for line in done.stdout.splitlines()]
    (header, _), (train, _), (val, _) = (
        [row for row in rows if row and row[0] == name] for name in ("split", "train", "val")
    )
    account = dict(zip(header[1:], train[1:], strict=True))
    assert (account["found"], account["written"], account["quarantined"]) == ("41", "39", "2")
    assert (account["shards"], account["ignored"]) == ("5", "1")
    assert val[1:5] == ["15", "15", "0", "2"]
    assert "quarantined, not an image: 1" in done.stdout
    assert "quarantined, cannot be decoded: 1" in done.stdout
    assert "7 shards made, 0 found finished, 3 classes" in done.stdout
    assert "next: tools/compute_pca.py shards" in done.stdout


def test_the_account_tells_the_seconds_of_each_stage_by_split_and_in_all(
    image_folder: Path, tmp_path: Path
) -> None:
    told = run(tmp_path, image_folder, *FEW).stdout.partition("seconds of the workers:\n")[2]
    lines = told.splitlines()
    assert lines[0].split() == [
        "split", "read", "decode", "resize", "encode", "verify", "sums", "write", "all"
    ]  # fmt: skip
    train, val, whole = ([float(s) for s in line[7:].split()] for line in lines[1:4])
    assert [line[:7].strip() for line in lines[1:4]] == ["train", "val", "in all"]
    for row in (train, val, whole):
        assert abs(sum(row[:-1]) - row[-1]) < 0.05 * 8  # each is rounded to a tenth
    for parts in zip(train, val, whole, strict=True):
        assert abs(parts[0] + parts[1] - parts[2]) < 0.05 * 3
    shares = [int(share.removesuffix("%")) for share in lines[4].split()]
    assert len(shares) == 7 and abs(sum(shares) - 100) <= 4


def test_strict_exits_with_3_when_something_was_quarantined_and_keeps_the_shards(
    image_folder: Path, shard_copy: Path, tmp_path: Path
) -> None:
    done = run(tmp_path, image_folder, "--out", shard_copy, "--strict", *FEW)
    assert done.exit_code == 3, done.stderr
    assert "0 shards made, 7 found finished" in done.stdout
    assert open_dataset(shard_copy).num_samples("train") == 39


def test_strict_exits_with_0_when_nothing_was_quarantined(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=1, val_per_class=1)
    assert run(tmp_path, source, "--strict", *FEW).exit_code == 0


def test_fresh_removes_earlier_shards_and_spares_the_readme(
    image_folder: Path, shard_copy: Path, tmp_path: Path
) -> None:
    (shard_copy / "README.md").write_text("the format\n")
    refused = run(tmp_path, image_folder, "--out", shard_copy, "--quality", "60", *FEW)
    assert_one_error(refused, "quality is 90 there, 60 here", "--out", "--fresh")
    done = run(tmp_path, image_folder, "--out", shard_copy, "--quality", "60", "--fresh", *FEW)
    assert done.exit_code == 0, done.stderr
    assert (shard_copy / "README.md").read_text() == "the format\n"
    assert open_dataset(shard_copy).settings["jpeg"]["quality"] == 60
    assert not (shard_copy / PCA_NAME).exists()


def test_a_refused_fresh_start_costs_no_shard(image_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(image_folder, source)
    out = tmp_path / "shards"
    assert run(tmp_path, source, *FEW).exit_code == 0
    before = folder_bytes(out)
    nowhere = ["--engine", "ray", "--ray-address", "127.0.0.1:1"]
    refused = run(tmp_path, source, "--fresh", *nowhere, *FEW)
    assert_one_error(refused, "Ray")  # is missing, or nobody listens there
    with sole_writer(out):
        refused = run(tmp_path, source, "--fresh", *FEW)
        assert_one_error(refused, "another process is writing")
    assert folder_bytes(out) == before
    among = source / "train" / "shards"
    shutil.copytree(out, among)
    refused = run(tmp_path, source, "--out", among, "--fresh", *FEW)
    assert_one_error(refused, "lies among the originals")
    assert folder_bytes(among) == before


def test_run_as_a_file_it_ends_with_the_code_and_message_of_the_command(tmp_path: Path) -> None:
    done = run_file(tmp_path, "none")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == run(tmp_path, "none").stderr


def test_sources_that_are_none_end_with_one_message(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_one_error(run(tmp_path, empty), str(empty), "holds no images", "train/<class>/*")
    assert_one_error(run(tmp_path, "none"), "there is no none", "a folder of images")
    assert not (tmp_path / "shards").exists()


def test_a_class_only_in_val_ends_with_one_message(image_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "val" / "zebra").mkdir(parents=True)
    (source / "train").symlink_to(image_folder / "train")
    (source / "val" / "zebra" / "0.jpg").write_bytes(b"")
    assert_one_error(run(tmp_path, source), "zebra", "add them to train or take them out of val")


def test_an_output_that_cannot_be_written_ends_with_one_message(
    image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = run(tmp_path, image_folder, "--out", tmp_path / "file" / "shards", *FEW)
    assert_one_error(done, str(tmp_path / "file"))
    done = run(tmp_path, image_folder, "--out", tmp_path / "file", *FEW)
    assert_one_error(done, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("--workers", "0", 2),
        ("--encoding", "png", 2),
        ("--quality", "high", 2),
        ("--quality", "0", 2),
        ("--images-per-shard", "0", 2),
        ("--shuffle-seed", "-1", 2),
    ],
)
def test_impossible_options_end_before_anything_is_written(
    image_folder: Path, tmp_path: Path, option: str, value: str, code: int
) -> None:
    done = run(tmp_path, image_folder, option, value)
    assert done.exit_code == code
    assert value in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "shards").exists()


def test_help_names_every_flag(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.exit_code == 0
    for flag in (
        "--out", "--workers", "--images-per-shard", "--quality", "--shuffle-seed", "--encoding",
        "--ignore-orientation", "--format", "--val-fraction", "--engine", "--ray-address",
        "--fresh", "--strict",
    ):  # fmt: skip
        assert flag in done.stdout


def test_a_single_tree_is_split_by_the_fraction_asked_for(
    image_folder: Path, tmp_path: Path
) -> None:
    options = ["--val-fraction", "0.25", *FEW]
    done = run(tmp_path, image_folder / "train", *options)
    assert done.exit_code == 0, done.stderr
    dataset = open_dataset(tmp_path / "shards")
    found = {name: split.found for name, split in dataset.splits.items()}
    assert found == {"train": 31, "val": 10}  # of 13, 15 and 13 originals
    before = folder_bytes(tmp_path / "shards")
    other = run(tmp_path, image_folder / "train", "--val-fraction", "0.3", *FEW)
    assert_one_error(other, "val_fraction is 0.25 there, 0.3 here")
    assert folder_bytes(tmp_path / "shards") == before


def test_what_has_no_labels_or_no_images_is_named_in_the_account(
    image_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "test").mkdir(parents=True)
    shutil.copytree(image_folder / "val", source / "train")
    for name in "uvwxyz":
        (source / "train" / name).mkdir()
    for name in ("new\nline.jpg", os.fsdecode(b"caf\xe9.jpg")):
        shutil.copy(image_folder / "val/ant/00.jpg", source / "train" / name)
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (source / "test" / name).write_bytes(b"never read")
    done = run(tmp_path, source, *FEW)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "  left out, no labels: 3 of test" in lines
    told = "  ignored, beside class folders and so of no class: 2 of train: "
    assert rf"{told}'train/caf\udce9.jpg', 'train/new\nline.jpg'" in lines
    assert "  no images, so no class: u, v, w, x, y and 1 more" in lines
    assert list(open_dataset(tmp_path / "shards").splits) == ["train"]


def test_an_archive_is_prepared_in_place(image_folder: Path, tmp_path: Path) -> None:
    images = {path.name: path.read_bytes() for path in (image_folder / "val/ant").iterdir()}
    (tmp_path / "all.tar").write_bytes(tar_of_tars({"n02": images, "n01": images}))
    for name, options in (("one", []), ("two", ["--format", "class-tars"])):
        done = run(tmp_path, "all.tar", "--out", name, *options, *FEW)
        assert done.exit_code == 0, done.stderr
    assert open_dataset(tmp_path / "one").classes == ("n01", "n02")
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")
    refused = run(tmp_path, "all.tar", "--out", "three", "--format", "kaggle", *FEW)
    assert_one_error(refused, "all.tar")


def test_a_truncated_archive_ends_before_anything_is_written(tmp_path: Path) -> None:
    data = tar_of_tars({"n01": {"1.jpg": bytes(5000)}})
    (tmp_path / "all.tar").write_bytes(data[:3000])
    assert_one_error(run(tmp_path, "all.tar", *FEW), "all.tar", "copy or download it again")
    assert not (tmp_path / "shards").exists()
