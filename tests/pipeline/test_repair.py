"""Damage is mended byte for byte where the originals are as they were; else nothing is touched."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.engines import run_tasks
from pipeline.manifest import QUARANTINE_NAME, TIMM_NAME, Dataset, open_dataset
from pipeline.plan import Settings, plan
from pipeline.repair import repair
from pipeline.sources import open_source
from pipeline.verify import verify_dataset
from tests.conftest import encoded, flip_byte, folder_bytes, prepare_here, write_source
from tests.pipeline.harms import (
    HARMS_OF_A_SHARD,
    HARMS_OF_THE_WHOLE,
    STEM,
    flip_in_image,
    remove,
    verified,
)


def repaired_from(source: Path, folder: Path) -> Dataset:
    dataset = open_dataset(folder, check_sizes=False)
    damaged = list(verified(folder).damaged)
    return repair(
        open_source(source), dataset, damaged, lambda shards: run_tasks(shards, 1, lambda _: None)
    )


@pytest.mark.parametrize(("harm", "problem"), HARMS_OF_A_SHARD)
def test_a_repair_makes_the_damaged_shard_as_it_was_and_touches_no_other(
    image_folder: Path,
    shard_folder: Path,
    shard_copy: Path,
    harm: Callable[[Path], None],
    problem: str,
) -> None:
    del problem
    harm(shard_copy)
    before = {path.name: path.stat().st_mtime_ns for path in shard_copy.glob("*-00000?.*")}
    repaired = repaired_from(image_folder, shard_copy)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)
    after = {path.name: path.stat().st_mtime_ns for path in shard_copy.glob("*-00000?.*")}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"{STEM}.{end}" for end in ("tar", "idx", "sums.npz", "receipt.json")}
    assert verify_dataset(repaired, sample=1, seed=0, report=lambda _: None).sound


@pytest.mark.parametrize(("harm", "problem"), HARMS_OF_THE_WHOLE[:-3])
def test_a_repair_writes_anew_what_ties_the_shards_together(
    image_folder: Path,
    shard_folder: Path,
    shard_copy: Path,
    harm: Callable[[Path], None],
    problem: str,
) -> None:
    del problem
    harm(shard_copy)
    repaired_from(image_folder, shard_copy)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


@pytest.mark.parametrize(
    "name",
    [
        "train.index.npy",
        QUARANTINE_NAME,
        TIMM_NAME,
    ],
)
def test_a_repair_mends_damage_of_shards_and_of_the_whole_at_once(
    image_folder: Path, shard_folder: Path, shard_copy: Path, name: str
) -> None:
    (shard_copy / name).unlink()
    remove(".receipt.json")(shard_copy)
    repaired_from(image_folder, shard_copy)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


def test_another_source_repairs_nothing(tmp_path: Path, shard_copy: Path) -> None:
    flip_in_image(shard_copy)
    before = folder_bytes(shard_copy)
    other = write_source(tmp_path / "other")
    with pytest.raises(ValueError, match="--fresh to remove the shards there and start over"):
        repaired_from(other, shard_copy)
    assert folder_bytes(shard_copy) == before


def test_originals_of_other_bytes_repair_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=4, val_per_class=1)
    out = tmp_path / "out"
    prepare_here(source, out, images_per_shard=3)
    flip_byte(out / "train-000001.tar", 700)
    before = folder_bytes(out)
    other = encoded(Image.new("RGB", (60, 60), (200, 30, 90)))
    for path in (source / "train").rglob("*.jpg"):
        path.write_bytes(other.ljust(path.stat().st_size, b"\0"))  # as large as before
    with pytest.raises(ValueError, match="was made from other bytes of train/"):
        repaired_from(source, out)
    assert folder_bytes(out) == before


def test_a_lost_shard_whose_originals_are_others_now_is_not_replaced(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=4, val_per_class=1)
    out = tmp_path / "out"
    prepare_here(source, out, images_per_shard=3)
    (out / "train-000001.tar").unlink()
    before = folder_bytes(out)
    shards = plan(open_source(source), out, Settings(images_per_shard=3))
    (lost,) = (s for s in shards if (s.split, s.number) == ("train", 1))
    original = source / os.fsdecode(lost.task().originals.names[0])
    other = encoded(Image.new("RGB", (60, 60), (200, 30, 90)))
    original.write_bytes(other.ljust(original.stat().st_size, b"\0"))
    with pytest.raises(ValueError, match=r"train-000001.tar, made from .* has SHA-256"):
        repaired_from(source, out)
    assert folder_bytes(out) == before


def test_a_split_that_came_after_the_preparation_does_not_hinder_a_repair(
    image_folder: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "train").symlink_to(image_folder / "train")
    prepare_here(source, out)
    before = folder_bytes(out)
    (source / "val").symlink_to(image_folder / "val")
    flip_byte(out / f"{STEM}.tar", 700)
    repaired_from(source, out)
    assert folder_bytes(out) == before


def test_an_original_that_is_readable_now_does_not_hinder_the_repair_of_another_shard(
    tmp_path: Path
) -> None:
    source, out = write_source(tmp_path / "source", train_per_class=4), tmp_path / "out"
    target = source / "train/bee/01.jpg"
    moved = target.rename(tmp_path / "away.jpg")
    target.symlink_to(moved.with_name("gone.jpg"))
    prepare_here(source, out, images_per_shard=3)
    before = folder_bytes(out)
    receipts = [json.loads(path.read_text()) for path in sorted(out.glob("train-*.receipt.json"))]
    unreadable = [bool(receipt["quarantined"]) for receipt in receipts].index(True)
    moved.rename(moved.with_name("gone.jpg"))
    flip_byte(out / f"train-{(unreadable + 1) % len(receipts):06d}.tar", 700)
    repaired_from(source, out)
    assert folder_bytes(out) == before


def test_what_a_killed_repair_left_goes_with_the_next_one(
    image_folder: Path, shard_folder: Path, shard_copy: Path
) -> None:
    left = shard_copy / ".repair-abcdefgh"
    left.mkdir()
    (left / "train-000000.tar").write_bytes(bytes(1000))
    flip_in_image(shard_copy)
    repaired_from(image_folder, shard_copy)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)
