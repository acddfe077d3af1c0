"""What is finished is kept; shards of other settings, originals or bytes are refused, unharmed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.existing_shards import Standing, standing
from pipeline.images import ImageFormat
from pipeline.manifest import remove_dataset
from pipeline.originals import FilePlaces
from pipeline.plan import PlannedShard, Settings, plan
from pipeline.sources import open_source
from tests.conftest import (
    IMAGES_PER_SHARD,
    encoded,
    folder_bytes,
    prepare_here,
    tar_of_tars,
    write_source,
)
from tests.pipeline.conftest import listing_of, small_source


def test_other_settings_are_refused_and_harm_nothing(
    image_folder: Path, shard_folder: Path, shard_copy: Path
) -> None:
    with pytest.raises(ValueError, match="quality is 90 there, 50 here"):
        prepare_here(image_folder, shard_copy, image_format=ImageFormat(quality=50))
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_other_originals_are_refused_and_harm_nothing(tmp_path: Path, change: str) -> None:
    source = small_source(tmp_path / "source")
    out = tmp_path / "out"
    prepare_here(source, out)
    before = folder_bytes(out)
    image = source / "train/ant/00.jpg"
    if change == "added":
        shutil.copy(image, source / "train/ant/new.jpg")
    elif change == "removed":
        image.unlink()
    else:
        image.rename(source / "train/ant/zz.jpg")
    with pytest.raises(ValueError, match=r"other originals|other settings|not of this source"):
        prepare_here(source, out)
    assert folder_bytes(out) == before


def test_finished_shards_that_the_plan_lacks_are_refused(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    out = tmp_path / "out"
    prepare_here(source, out)
    shutil.rmtree(source / "val")
    with pytest.raises(ValueError, match=r"holds 1 shards that are not .*val-000000.tar.*--fresh"):
        prepare_here(source, out)
    assert (out / "val-000000.tar").exists()


@pytest.mark.parametrize(
    ("layout", "out"), [("folders", "."), ("folders", "train/shards"), ("tree", "shards")]
)
def test_shards_are_not_written_among_the_originals(
    tmp_path: Path, layout: str, out: str
) -> None:
    source = write_source(tmp_path / "source", train_per_class=1, val_per_class=1)
    root = source if layout == "folders" else source / "train"
    with pytest.raises(ValueError, match="lies among the originals in .*; give another"):
        prepare_here(root, root / out)
    assert not list(source.rglob("*.tar*"))


def test_beside_what_cannot_be_read_another_size_is_still_seen(tmp_path: Path) -> None:
    source, out = small_source(tmp_path / "source"), tmp_path / "out"
    (source / "train/ant/link.jpg").symlink_to(tmp_path / "gone.jpg")
    prepare_here(source, out, images_per_shard=13)
    with open(source / "train/bee/01.jpg", "ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="from originals of another size .* have changed"):
        prepare_here(source, out, images_per_shard=13)


def test_an_original_of_another_size_is_a_changed_source(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=2, val_per_class=1)
    prepare_here(source, tmp_path / "out")
    before = folder_bytes(tmp_path / "out")
    with open(source / "train/bee/01.jpg", "ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="from originals of another size .* have changed"):
        prepare_here(source, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == before


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_originals_of_other_bytes_and_the_same_size_are_a_changed_source(
    tmp_path: Path, form: str
) -> None:
    photographs = {f"{i}.jpg": encoded(Image.new("RGB", (9, 9), (40 * i, 0, 0))) for i in range(5)}
    source, changed = tmp_path / "source", tmp_path / "source/train/n01/3.jpg"
    if form == "folder":
        changed.parent.mkdir(parents=True)
        for name, data in photographs.items():
            (changed.parent / name).write_bytes(data)
    else:
        source = changed = tmp_path / "all.tar"
        source.write_bytes(tar_of_tars({"n01": photographs}))
    prepare_here(source, tmp_path / "out", images_per_shard=2)
    before = folder_bytes(tmp_path / "out")
    whole, times = changed.read_bytes(), changed.stat()
    with open(changed, "r+b") as file:  # in the image's own bytes, behind its headers
        file.seek(whole.index(photographs["3.jpg"]) + len(photographs["3.jpg"]) - 4)
        file.write(b"\x55")
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # as copying programs do
    expected = r"made from other bytes of train/n01/3\.jpg .*has changed.*--fresh"
    with pytest.raises(ValueError, match=expected):
        prepare_here(source, tmp_path / "out", images_per_shard=2)
    assert folder_bytes(tmp_path / "out") == before


def test_originals_that_were_only_touched_are_the_same_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_source(tmp_path / "source")
    (source / "train/ant/link.jpg").symlink_to(source / "train/bee/01.jpg")
    prepare_here(source, tmp_path / "out")
    (source / "train/bee/01.jpg").chmod(0o600)
    read: list[bytes] = []
    places_read = FilePlaces.read

    def counted(places: FilePlaces, position: int) -> bytes:
        read.append(places.names[position])
        return places_read(places, position)

    monkeypatch.setattr(FilePlaces, "read", counted)
    outcome = prepare_here(source, tmp_path / "out")
    assert (outcome.num_made, outcome.num_kept) == (0, 3)
    assert sorted(read) == [b"train/ant/link.jpg", b"train/bee/01.jpg"]  # no others


def first_shard(source: Path, out: Path, **settings: Any) -> PlannedShard:
    chosen = Settings(**{"images_per_shard": IMAGES_PER_SHARD, **settings})
    return next(plan(open_source(source), out, chosen))


def test_a_shard_with_its_receipt_standing(image_folder: Path, shard_folder: Path) -> None:
    assert standing(first_shard(image_folder, shard_folder)) is Standing.FINISHED


def test_a_shard_that_is_not_there_is_missing(image_folder: Path, shard_copy: Path) -> None:
    remove_dataset(shard_copy)
    assert standing(first_shard(image_folder, shard_copy)) is Standing.MISSING


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"image_format": ImageFormat(quality=80)}, "quality is 90 there, 80 here"),
        ({"image_format": ImageFormat(encoding="raw")}, "encoding is jpeg there, raw here"),
        (
            {"image_format": ImageFormat(ignore_orientation=True)},
            "orientation is exif there, ignored here",
        ),
        ({"shuffle_seed": 3}, "shuffle_seed is 0 there, 3 here"),
        ({"images_per_shard": 8}, "images_per_shard is 9 there, 8 here"),
    ],
)
def test_other_settings_are_refused_naming_what_differs(
    image_folder: Path, shard_folder: Path, settings: dict[str, Any], difference: str
) -> None:
    with pytest.raises(ValueError, match=rf"train-000000.tar .*{difference}.*--out.*--fresh"):
        standing(first_shard(image_folder, shard_folder, **settings))


def test_other_originals_are_refused(image_folder: Path, shard_folder: Path) -> None:
    shard = first_shard(image_folder, shard_folder)
    listing = shard.source.splits["train"]
    names = list(listing.names)
    names[shard.ids[0]] = b"train/ant/renamed.jpg"
    splits = {"train": listing_of(names, listing.labels.tolist())}
    renamed = replace(shard, source=replace(shard.source, splits=splits))
    with pytest.raises(ValueError, match=r"from other originals .*--out.*--fresh"):
        standing(renamed)
