"""Each original becomes the sample it should, or is accounted for with the reason."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.images import ImageFormat, decode_stored, encode, fit
from pipeline.manifest import QUARANTINE_NAME, open_dataset
from pipeline.originals import MAX_FILE_BYTES, FilePlaces
from pipeline.photographs import decode
from pipeline.plan import Settings, ShardTask, plan
from pipeline.receipt import read_receipt
from pipeline.shard_maker import MAX_DISK_ERRORS, make_shard
from pipeline.shards import read_sums
from pipeline.sources import open_source
from pipeline.tally import Tally
from tests.conftest import (
    IMAGES_PER_SHARD,
    encoded,
    folder_bytes,
    prepare_here,
    tar_of_tars,
    write_source,
)
from tests.pipeline.conftest import picture, small_source

SETTINGS = Settings(images_per_shard=IMAGES_PER_SHARD)


def first_task(source: Path, out: Path) -> ShardTask:
    return next(plan(open_source(source), out, SETTINGS)).task()


@pytest.mark.parametrize("split", ["train", "val"])
def test_each_sample_is_its_original_decoded_fitted_and_encoded(
    image_folder: Path, shard_folder: Path, split: str
) -> None:
    dataset = open_dataset(shard_folder)
    listing = open_source(image_folder).splits[split]
    for row in dataset.index(split):
        original = decode(listing.places.read(row["id"]))
        tar = (shard_folder / f"{split}-{row['shard']:06d}.tar").read_bytes()
        stored = tar[row["offset"] :][: row["size"]]
        assert stored == encode(fit(original), ImageFormat())
        assert row["label"] == listing.labels[row["id"]]


def test_raw_shards_hold_the_fitted_pixels_themselves(
    image_folder: Path, raw_shard_folder: Path
) -> None:
    dataset = open_dataset(raw_shard_folder)
    listing = open_source(image_folder).splits["val"]
    for row in dataset.index("val")[:4]:
        original = decode(listing.places.read(row["id"]))
        tar = (raw_shard_folder / f"val-{row['shard']:06d}.tar").read_bytes()
        np.testing.assert_array_equal(
            decode_stored(tar[row["offset"] :][: row["size"]]), fit(original)
        )


@pytest.mark.parametrize("folder_name", ["shard_folder", "raw_shard_folder"])
def test_the_sums_of_a_shard_are_those_of_its_stored_pixels(
    folder_name: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(folder_name)
    rows = open_dataset(folder).index("train")
    tar = (folder / "train-000001.tar").read_bytes()
    pixels = np.stack(
        [
            decode_stored(tar[row["offset"] :][: row["size"]])
            for row in rows[rows["shard"] == 1]
        ]
    )
    sums = read_sums(folder, "train", 1)
    assert sums.num_images == len(pixels)
    np.testing.assert_array_equal(sums.pixel_sum, pixels.astype(np.int64).sum(0))
    centred = pixels.reshape(-1, 3).astype(np.int64) - 128
    np.testing.assert_array_equal(sums.product_sum, centred.T @ centred)


def test_unreadable_originals_are_quarantined_with_their_reason(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    folder = source / "train/ant"
    (folder / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encoded_half())
    prepare_here(source, tmp_path / "out")
    outcome = open_dataset(tmp_path / "out").split("train")
    assert (outcome.found, outcome.quarantined) == (16, 4)
    receipts = [read_receipt(tmp_path / "out", "train", number) for number in range(2)]
    entries = {e["source"]: e for r in receipts if r is not None for e in r.quarantined}
    reasons = {os.path.basename(source): entry["reason"] for source, entry in entries.items()}
    assert reasons["link.jpg"] == "unreadable: broken symbolic link"
    assert reasons["empty.jpg"] == "empty file"
    assert reasons["loop.jpg"].startswith("unreadable: ")
    assert reasons["caf\udce9.jpg"].startswith("cannot be decoded")
    empty = hashlib.sha256(b"").hexdigest()
    assert entries["train/ant/empty.jpg"]["sha256"] == empty


def encoded_half() -> bytes:
    data = encoded(Image.effect_noise((200, 200), 50))
    return data[: len(data) // 2]


def test_an_original_that_vanishes_ends_the_task_and_names_it(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    task = first_task(source, tmp_path)
    name = task.originals.names[3]
    os.unlink(os.path.join(os.fsencode(source), name))
    with pytest.raises(OSError, match=rf"{name.decode()} was listed and is gone"):
        make_shard(task, lambda _: None)
    assert not (tmp_path / "train-000000.tar").exists()
    assert read_receipt(tmp_path, "train", 0) is None


def bad_places(
    originals: Collection[bytes], monkeypatch: pytest.MonkeyPatch, number: int = errno.EIO
) -> None:
    """Lets the disk fail wherever one of these originals lies, with the error of this number."""
    read = FilePlaces.read

    def read_or_fail(places: FilePlaces, position: int) -> bytes:
        if places.names[position] in originals:
            raise OSError(number, os.strerror(number))
        return read(places, position)

    monkeypatch.setattr(FilePlaces, "read", read_or_fail)


def test_bad_places_of_a_disk_cost_what_lies_there_and_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = small_source(tmp_path / "source"), tmp_path / "out"
    prepare_here(source, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        bad_places({b"train/ant/02.jpg", b"train/cat/00.jpg"}, patch)
        prepare_here(source, out)
        entries = [json.loads(line) for line in (out / QUARANTINE_NAME).read_text().splitlines()]
        assert {entry["source"] for entry in entries} == {"train/ant/02.jpg", "train/cat/00.jpg"}
        for entry in entries:
            assert entry["reason"] == "unreadable: Input/output error" and not entry["sha256"]
        assert prepare_here(source, out).num_made == 0  # the places are as bad as before
    prepare_here(source, out)
    assert folder_bytes(out) == folder_bytes(tmp_path / "undisturbed")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
def test_a_file_that_gives_a_real_input_output_error_is_quarantined(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    (source / "train/ant/memory.jpg").symlink_to("/proc/self/mem")  # nothing lies at its beginning
    dataset = prepare_here(source, tmp_path / "out", num_workers=2).dataset
    assert (dataset.split("train").written, dataset.split("train").quarantined) == (12, 1)
    entry = json.loads((tmp_path / "out" / QUARANTINE_NAME).read_text())
    assert entry["reason"] == "unreadable: Input/output error"


def test_a_bad_place_within_an_archive_costs_its_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = {f"{i}.jpg": encoded(picture(seed=i)) for i in range(4)}
    archive = tmp_path / "all.tar"
    archive.write_bytes(tar_of_tars({"n01": photographs}))
    bad = archive.read_bytes().index(photographs["2.jpg"])
    pread = os.pread

    def pread_or_fail(descriptor: int, size: int, offset: int) -> bytes:
        if offset <= bad < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, offset)

    source = open_source(archive)
    (task,) = (shard.task() for shard in plan(source, tmp_path, SETTINGS))
    monkeypatch.setattr("pipeline.originals.os.pread", pread_or_fail)
    make_shard(task, lambda _: None)
    receipt = read_receipt(tmp_path, "train", 0)
    assert receipt is not None and receipt.samples == 3
    (entry,) = receipt.quarantined
    assert (entry["source"], entry["reason"]) == (
        "train/n01/2.jpg", "unreadable: Input/output error"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("num_bad", "num_originals", "ends"),
    [
        (MAX_DISK_ERRORS - 1, 12, False),
        (MAX_DISK_ERRORS, 12, True),
        (3, 3, True),
        (2, 3, False),
    ],
)
def test_a_disk_that_reads_nothing_any_more_ends_the_task_with_nothing_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bad: int, num_originals: int, ends: bool
) -> None:
    source = small_source(tmp_path / "source")
    task = next(plan(open_source(source), tmp_path, Settings(images_per_shard=num_originals)))
    names = list(task.task().originals.names)
    assert len(names) == num_originals
    bad_places(names[-num_bad:], monkeypatch)  # to the end, as after a lost connection
    if ends:
        with pytest.raises(OSError, match=rf"^{num_bad} originals in a row cannot be read, train/"
                           r".*\(unreadable: Input/output error\): the disk.*fails"):  # fmt: skip
            make_shard(task.task(), lambda _: None)
        assert list(tmp_path.iterdir()) == [source]
    else:
        make_shard(task.task(), lambda _: None)
        receipt = read_receipt(tmp_path, "train", 0)
        assert receipt is not None and len(receipt.quarantined) == num_bad


def lose(source: Path, tmp_path: Path) -> None:
    """What every original is now a link to is not mounted any more."""
    (source / "train").rename(tmp_path / "disk")
    for original in (tmp_path / "disk").glob("*/*"):
        link = source / "train" / original.relative_to(tmp_path / "disk")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(original)
    (tmp_path / "disk").rename(tmp_path / "unmounted")


@pytest.mark.parametrize("num_originals", [12, 3])
def test_links_to_a_disk_that_is_not_mounted_any_more_end_the_task(
    tmp_path: Path, num_originals: int
) -> None:
    source = small_source(tmp_path / "source")
    lose(source, tmp_path)
    before = set(tmp_path.iterdir())
    task = next(plan(open_source(source), tmp_path, Settings(images_per_shard=num_originals)))
    num_failed = min(num_originals, MAX_DISK_ERRORS)
    message = rf"^{num_failed} originals in a row cannot be read, train/.* the last \(unreadable: "
    with pytest.raises(OSError, match=message + r"broken symbolic link\): is the disk .*mounted"):
        make_shard(task.task(), lambda _: None)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_disk_whose_files_may_not_be_read_any_more_ends_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    task = first_task(small_source(tmp_path / "source"), tmp_path)
    bad_places(set(task.originals.names), monkeypatch, number)
    with pytest.raises(OSError, match=rf"\(unreadable: {os.strerror(number)}\): .*may its files"):
        make_shard(task, lambda _: None)


def test_broken_links_among_others_or_alone_in_their_shards_are_no_lost_disk(
    tmp_path: Path,
) -> None:
    source = write_source(tmp_path / "source", train_per_class=7, val_per_class=1)
    names = list(open_source(source).splits["train"].names)[::3]
    for name in names:
        path = source / os.fsdecode(name)
        path.unlink()
        path.symlink_to("gone.jpg")
    for images_per_shard in (1, 30):
        out = tmp_path / f"{images_per_shard}"
        outcome = prepare_here(source, out, images_per_shard=images_per_shard)
        assert outcome.dataset.split("train").quarantined == len(names)


def test_bad_places_that_do_not_follow_each_other_are_no_lost_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", train_per_class=7, val_per_class=1)
    task = next(plan(open_source(source), tmp_path, Settings(images_per_shard=30))).task()
    bad = list(task.originals.names)[::2]
    assert len(bad) > MAX_DISK_ERRORS
    bad_places(bad, monkeypatch)
    make_shard(task, lambda _: None)
    receipt = read_receipt(tmp_path, "train", 0)
    assert receipt is not None and len(receipt.quarantined) == len(bad)


def test_an_unknown_error_of_the_system_ends_the_task_and_quarantines_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(places: FilePlaces, position: int) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    task = first_task(small_source(tmp_path / "source"), tmp_path)
    monkeypatch.setattr(FilePlaces, "read", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        make_shard(task, lambda _: None)
    assert read_receipt(tmp_path, "train", 0) is None


def test_a_remade_shard_has_no_receipt_while_it_is_being_made(
    image_folder: Path, shard_copy: Path
) -> None:
    def check(_: Tally) -> None:
        assert not (shard_copy / "train-000000.receipt.json").exists()

    make_shard(first_task(image_folder, shard_copy), check)
    assert (shard_copy / "train-000000.receipt.json").exists()


UNUSUAL = [b"with space.jpg", b"new\nline.jpg", b"caf\xe9.jpg", b"\xff\xfe.jpg", b'quote".jpg']


def test_unusual_names_come_through_the_whole_preparation(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    folder = os.fsencode(source / "train/ant")
    good, bad = (folder + b"/00.jpg", b"no photograph")
    sound, broken = set(), set()
    for name in UNUSUAL:
        shutil.copy(good, os.path.join(folder, b"good " + name))
        Path(os.fsdecode(os.path.join(folder, b"bad " + name))).write_bytes(bad)
        sound.add(b"train/ant/good " + name)
        broken.add(b"train/ant/bad " + name)
    outcome = prepare_here(source, tmp_path / "out", num_workers=2)
    listing = open_source(source).splits["train"]
    written = {listing.names[i] for i in outcome.dataset.index("train")["id"]}
    assert written >= sound and not written & broken
    lines = (tmp_path / "out" / QUARANTINE_NAME).read_text("ascii").splitlines()
    entries = [json.loads(line) for line in lines]
    assert {os.fsencode(entry["source"]) for entry in entries} == broken
    for entry in entries:
        assert listing.names[entry["id"]] == os.fsencode(entry["source"])
        assert entry["split"] == "train" and entry["reason"].startswith("not an image")
        assert entry["sha256"] == hashlib.sha256(bad).hexdigest()
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    assert prepare_here(source, tmp_path / "again").num_made == 0
    assert folder_bytes(tmp_path / "again") == folder_bytes(tmp_path / "out")


def test_what_is_no_readable_file_is_quarantined_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_source(tmp_path / "source")
    folder = source / "train/ant"
    os.mkfifo(folder / "pipe.jpg")
    (folder / "circle").symlink_to(source / "train", target_is_directory=True)
    locked = folder / "locked.jpg"
    shutil.copy(folder / "00.jpg", locked)
    read = FilePlaces.read

    def refuse(places: FilePlaces, position: int) -> bytes:
        if places.path(position) == str(locked):  # root may read everything: no chmod
            raise PermissionError(errno.EACCES, "Permission denied", str(locked))
        return read(places, position)

    monkeypatch.setattr(FilePlaces, "read", refuse)
    prepare_here(source, tmp_path / "out")
    lines = (tmp_path / "out" / QUARANTINE_NAME).read_text().splitlines()
    assert {(e := json.loads(line))["source"]: e["reason"] for line in lines} == {
        "train/ant/circle": "unreadable: Is a directory",
        "train/ant/locked.jpg": "unreadable: Permission denied",
        "train/ant/pipe.jpg": "unreadable: not a regular file",
    }


def test_running_out_of_memory_ends_the_run_and_quarantines_nothing(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pipeline.shard_maker.decode", fail)
    with pytest.raises(OSError, match="out of memory while decoding .*: use fewer --workers"):
        prepare_here(image_folder, tmp_path / "out")


def test_a_file_too_large_for_a_photograph_is_quarantined_with_its_sha256(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source", train_per_class=2), tmp_path / "out"
    film = source / "train/cat/film.mp4"
    with open(film, "wb") as file:
        file.write(b"its first bytes")
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: takes no space
    first = prepare_here(source, out)
    assert first.dataset.split("train").source_bytes > MAX_FILE_BYTES
    (entry,) = map(json.loads, (out / QUARANTINE_NAME).read_text().splitlines())
    assert entry["source"] == "train/cat/film.mp4"
    assert entry["reason"] == "too large: 268,435,457 bytes, over 268,435,456"
    with open(film, "rb") as file:
        assert entry["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
    before = folder_bytes(out)
    assert prepare_here(source, out).num_made == 0
    assert folder_bytes(out) == before


def test_a_task_that_runs_twice_at_once_makes_the_same_shard(
    image_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    task = first_task(image_folder, tmp_path)
    done = 0

    def run_again(_: Tally) -> None:
        nonlocal done
        done += 1
        if done == 4:  # the first one has written half of its tar
            make_shard(task, lambda _: None)

    make_shard(task, run_again)
    names = {f"train-000000.{end}" for end in ("tar", "idx", "sums.npz", "receipt.json")}
    assert folder_bytes(tmp_path) == {
        name: data for name, data in folder_bytes(shard_folder).items() if name in names
    }
