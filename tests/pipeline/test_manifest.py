"""A shard folder says what it holds, and a damaged one says what is wrong and what mends it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import (
    DATASET_NAME,
    QUARANTINE_NAME,
    TIMM_NAME,
    open_dataset,
    remove_dataset,
    write_dataset,
)
from pipeline.shards import write_index
from tests.conftest import BROKEN, CLASSES, cut_file, flip_byte, folder_bytes
from tests.pipeline.conftest import rewrite

Change = Callable[[Path], object]


def rewrite_train(folder: Path, **changes: Any) -> None:
    splits = json.loads((folder / DATASET_NAME).read_text())["splits"]
    rewrite(folder / DATASET_NAME, splits={**splits, "train": {**splits["train"], **changes}})


@pytest.mark.parametrize(("split", "found"), [("train", 41), ("val", 15)])
def test_counts_reconcile(shard_folder: Path, split: str, found: int) -> None:
    dataset = open_dataset(shard_folder)
    listed = dataset.split(split)
    lines = (shard_folder / QUARANTINE_NAME).read_text().splitlines()
    entries = [entry for entry in map(json.loads, lines) if entry["split"] == split]
    assert listed.found == found == listed.written + listed.quarantined
    assert listed.quarantined == len(entries)
    rows = dataset.index(split)
    assert listed.written == len(rows) == sum(shard.samples for shard in listed.shards)
    assert dataset.num_samples(split) == listed.written
    ids = rows["id"].tolist() + [entry["id"] for entry in entries]
    assert sorted(ids) == list(range(found))


def test_dataset_json_describes_every_shard_and_its_bytes(shard_folder: Path) -> None:
    dataset = open_dataset(shard_folder)
    shards = [shard for split in dataset.splits.values() for shard in split.shards]
    assert {shard.name for shard in shards} == {path.name for path in shard_folder.glob("*.tar")}
    for shard in shards:
        data = (shard_folder / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    for split in dataset.splits.values():
        joined = "".join(shard.sha256 for shard in split.shards)
        assert split.fingerprint == hashlib.sha256(joined.encode()).hexdigest()
    assert dataset.classes == CLASSES and dataset.encoding == "jpeg"


def test_quarantine_names_source_reason_and_bytes(shard_folder: Path, image_folder: Path) -> None:
    lines = (shard_folder / QUARANTINE_NAME).read_text().splitlines()
    entries = {entry["source"]: entry for entry in map(json.loads, lines)}
    assert entries.keys() == BROKEN.keys()
    for source, reason in BROKEN.items():
        assert entries[source]["reason"].startswith(reason)
        data = (image_folder / source).read_bytes()
        assert entries[source]["sha256"] == hashlib.sha256(data).hexdigest()


def test_timm_finds_file_names_and_lengths(shard_folder: Path) -> None:
    splits = json.loads((shard_folder / TIMM_NAME).read_text())["splits"]
    for name, split in open_dataset(shard_folder).splits.items():
        lengths = dict(zip(splits[name]["filenames"], splits[name]["shard_lengths"], strict=True))
        assert lengths == {shard.name: shard.samples for shard in split.shards}
        assert splits[name]["num_samples"] == split.written


def test_an_unknown_split_is_refused_naming_those_there_are(shard_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'test', it has: train, val; prepare"):
        open_dataset(shard_folder).split("test")


# ---- damage ----

DAMAGES: dict[str, tuple[Change, str]] = {
    "unfinished": (
        lambda folder: (folder / DATASET_NAME).unlink(),
        r"has not finished; start it again to go on: tools/prepare_shards.py SOURCE --out",
    ),
    "cut tar": (
        lambda folder: cut_file(folder / "train-000001.tar", 512),
        r"train-000001.tar has \d+ bytes, \d+ were written.*prepare again",
    ),
    "missing tar": (
        lambda folder: (folder / "val-000000.tar").unlink(),
        r"val-000000.tar cannot be read .*prepare again",
    ),
    "cut dataset.json": (
        lambda folder: cut_file(folder / DATASET_NAME, 40),
        r"dataset.json is damaged .*prepare again",
    ),
    "emptied dataset.json": (
        lambda folder: (folder / DATASET_NAME).write_bytes(b""),
        r"dataset.json is damaged .*prepare again",
    ),
    "dataset.json that is no text": (
        lambda folder: flip_byte(folder / DATASET_NAME, 30),
        r"dataset.json is damaged .*prepare again",
    ),
    "dataset.json that is a list": (
        lambda folder: (folder / DATASET_NAME).write_text("[1]"),
        r"dataset.json is damaged .*prepare again",
    ),
    "brackets without end": (
        lambda folder: (folder / DATASET_NAME).write_text("[" * 100_000),
        r"dataset.json is damaged .*RecursionError.*prepare again",
    ),
    "splits that are a list": (
        lambda folder: rewrite(folder / DATASET_NAME, splits=["train"]),
        r"dataset.json is damaged .*prepare again",
    ),
    "no classes": (
        lambda folder: rewrite(folder / DATASET_NAME, classes=None),
        r"dataset.json is damaged .*prepare again",
    ),
    "a class that is no text": (
        lambda folder: rewrite(folder / DATASET_NAME, classes=["ant", None, "cat"]),
        r"dataset.json is damaged .*None, expected text.*prepare again",
    ),
    "settings without an encoding": (
        lambda folder: rewrite(folder / DATASET_NAME, settings={"size_px": 256}),
        r"dataset.json is damaged .*encoding.*prepare again",
    ),
    "an encoding that is none": (
        lambda folder: rewrite(folder / DATASET_NAME, settings={"encoding": "jpef"}),
        r"dataset.json is damaged .*jpef.*prepare again",
    ),
    "a count that is no number": (
        lambda folder: rewrite_train(folder, written="39"),
        r"dataset.json is damaged .*written is '39', expected int.*prepare again",
    ),
    "a negative count": (
        lambda folder: rewrite_train(folder, found=-1),
        r"dataset.json is damaged .*found is -1, expected a number of 0 to.*prepare again",
    ),
    "a count beyond 64 bits": (
        lambda folder: rewrite_train(
            folder, shards=[{"name": "x", "samples": 10**30, "bytes": 1, "sha256": ""}]
        ),
        r"dataset.json is damaged .*samples is 10+, expected a number of 0 to.*prepare again",
    ),
    "a shard that has no sum": (
        lambda folder: rewrite_train(folder, shards=[{"name": "x", "samples": 1, "bytes": 1}]),
        r"dataset.json is damaged .*sha256.*prepare again",
    ),
    "other format": (
        lambda folder: rewrite(folder / DATASET_NAME, format_version=99),
        r"dataset.json has format version 99, this program reads 1; prepare",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_opening_a_damaged_folder_names_file_and_mend(shard_copy: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    open_dataset(shard_copy)
    change(shard_copy)
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(shard_copy)
    assert str(shard_copy) in str(caught.value)


def test_a_folder_that_is_not_there_or_holds_no_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .*/none; .*tools/prepare_shards.py SOURCE"):
        open_dataset(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no shards .*tools/prepare_shards.py SOURCE"):
        open_dataset(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"/file is a file; expected a folder, .*prepare_shards"):
        open_dataset(tmp_path / "file")


@pytest.mark.parametrize("position", [5, 200, -1])
def test_a_damaged_index_is_named(shard_copy: Path, position: int) -> None:
    flip_byte(shard_copy / "train.index.npy", position)
    with pytest.raises(ValueError, match=r"train.index.npy is damaged.*prepare again"):
        open_dataset(shard_copy).index("train")


def rows_of_another_shard(folder: Path) -> None:
    rewrite_rows(folder, lambda rows: rows["shard"].__setitem__(slice(-2, None), 9))


def rows_beyond_the_file(folder: Path) -> None:
    rewrite_rows(folder, lambda rows: rows["offset"].__iadd__(1 << 20))


def rewrite_rows(folder: Path, change: Callable[[Any], object]) -> None:
    """Changes the index of train, and says so in dataset.json: only the two disagree then."""
    dataset = open_dataset(folder)
    rows = dataset.index("train").copy()
    change(rows)
    split = replace(dataset.split("train"), index_sha256=write_index(folder, "train", rows))
    write_dataset(replace(dataset, splits={**dataset.splits, "train": split}))


def fewer_classes(folder: Path) -> None:
    rewrite(folder / DATASET_NAME, classes=["ant", "bee"])


def more_samples(folder: Path) -> None:
    first, second, *others = json.loads((folder / DATASET_NAME).read_text())["splits"]["train"][
        "shards"
    ]
    second["samples"] += 1
    rewrite_train(folder, shards=[first, second, *others])


def negative_label(folder: Path) -> None:
    rewrite_rows(folder, lambda rows: rows["label"].__setitem__(3, -1))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (fewer_classes, "its labels go beyond 2 classes"),
        (more_samples, r"train-000001.tar has \d rows and \d+ samples"),
        (rows_of_another_shard, r"train-000004.tar has \d rows and \d samples"),
        (rows_beyond_the_file, "train-000000.tar ends before its last row"),
        (negative_label, "its labels go beyond 3 classes"),
    ],
)
def test_an_index_of_other_shards_or_classes_is_refused_with_the_mend(
    shard_copy: Path, harm: Callable[[Path], None], told: str
) -> None:
    harm(shard_copy)
    path = shard_copy / "train.index.npy"
    expected = rf"{path} and dataset.json disagree: {told}; prepare again.*prepare_shards.py"
    with pytest.raises(ValueError, match=expected):
        open_dataset(shard_copy).index("train")


def test_an_index_with_rows_of_no_shard_is_refused(shard_copy: Path) -> None:
    dataset = open_dataset(shard_copy)
    split = dataset.split("train")
    fewer = {"train": replace(split, shards=split.shards[:-1])}
    write_dataset(replace(dataset, splits={**dataset.splits, **fewer}))
    with pytest.raises(ValueError, match=r"disagree: it has \d rows of no shard"):
        open_dataset(shard_copy).index("train")


def test_removal_takes_what_preparation_wrote_and_nothing_else(shard_copy: Path) -> None:
    num_made = len(folder_bytes(shard_copy))
    kept = {"README.md": b"the format", "notes.tar": b"mine", "train-1.tar": b"mine too"}
    for name, data in kept.items():
        (shard_copy / name).write_bytes(data)
    for left in ("train-000009.tar.0123456789abcdef.tmp", "dataset.json.0123456789abcdef.tmp"):
        (shard_copy / left).write_bytes(b"left by a kill")
    assert remove_dataset(shard_copy) == num_made + 2
    assert folder_bytes(shard_copy) == kept


def test_starting_over_removes_shards_and_nothing_that_is_named_much_like_them(
    shard_copy: Path,
) -> None:
    kept = ["README.md", "wnid-000001.tar", "train-000001.tar.gz", "mean.npy.txt"]
    for name in kept:
        (shard_copy / name).write_text("mine")
    remove_dataset(shard_copy)
    assert sorted(path.name for path in shard_copy.iterdir()) == sorted(kept)
