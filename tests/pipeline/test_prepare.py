"""Every original is written or accounted for; interruptions and restarts change no byte."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.images import ImageFormat, decode_stored, encode, fit
from pipeline.manifest import DATASET_NAME, QUARANTINE_NAME, open_dataset, read_receipt
from pipeline.moments import MEAN_NAME, PCA_NAME
from pipeline.originals import MAX_FILE_BYTES, FilePlaces
from pipeline.photographs import decode
from pipeline.plan import PlannedShard, Settings, ShardTask, plan
from pipeline.prepare import Stages, make_shard, prepare
from pipeline.shards import read_sums
from pipeline.sources import open_source
from pipeline.tally import Tally
from tests.conftest import (
    BROKEN,
    CLASSES,
    IMAGES_PER_SHARD,
    cut_file,
    encoded,
    folder_bytes,
    prepare_here,
    tar_of_tars,
    write_source,
)

SETTINGS = Settings(images_per_shard=IMAGES_PER_SHARD)


def prepared_bytes(folder: Path) -> dict[str, bytes]:
    """The files of a preparation, without the statistics computed from them later."""
    found = folder_bytes(folder)
    return {name: data for name, data in found.items() if name not in (PCA_NAME, MEAN_NAME)}


def small_source(root: Path) -> Path:
    return write_source(root, train_per_class=4, val_per_class=1)


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


def test_the_outcome_counts_shards_stages_and_enlarged_images(
    image_folder: Path, tmp_path: Path
) -> None:
    outcome = prepare_here(image_folder, tmp_path / "out")
    assert (outcome.num_made, outcome.num_kept) == (7, 0)
    assert outcome.dataset == open_dataset(tmp_path / "out")
    stages = {"read", "decode", "resize", "encode", "verify", "sums", "write"}
    assert outcome.stages.keys() == stages and min(outcome.stages.values()) > 0
    listing = open_source(image_folder).splits["train"]
    names = [os.fsdecode(name) for name in listing.names]
    sound = [i for i, name in enumerate(names) if name not in BROKEN]
    sides = [min(decode(listing.places.read(i)).shape[:2]) for i in sound]
    assert outcome.dataset.split("train").enlarged == sum(side < 256 for side in sides) > 0


def test_a_second_start_makes_nothing_and_changes_nothing(
    image_folder: Path, shard_copy: Path
) -> None:
    before = folder_bytes(shard_copy)
    times = {path.name: path.stat().st_mtime_ns for path in shard_copy.glob("*.tar")}
    outcome = prepare_here(image_folder, shard_copy)
    assert (outcome.num_made, outcome.num_kept) == (0, 7)
    assert folder_bytes(shard_copy) == before
    assert {path.name: path.stat().st_mtime_ns for path in shard_copy.glob("*.tar")} == times


@pytest.mark.parametrize("after", [0, 1, 14, 40])
def test_stopped_after_any_image_and_started_again_the_bytes_are_the_same(
    image_folder: Path, shard_folder: Path, tmp_path: Path, after: int
) -> None:
    out = tmp_path / "out"
    done = 0

    def advance(_: Tally) -> None:
        nonlocal done
        done += 1
        if done > after:
            raise KeyboardInterrupt

    def engine(shards: list[PlannedShard]) -> Stages:
        for shard in shards:
            make_shard(shard.task(), advance)
        return Counter()

    with pytest.raises(KeyboardInterrupt):
        prepare(open_source(image_folder), out, SETTINGS, engine)
    assert not (out / DATASET_NAME).exists()
    num_finished = len(list(out.glob("*.receipt.json")))
    outcome = prepare_here(image_folder, out)
    assert (outcome.num_made, outcome.num_kept) == (7 - num_finished, num_finished)
    assert prepared_bytes(out) == prepared_bytes(shard_folder)


def test_an_unfinished_folder_says_how_to_go_on(shard_copy: Path, image_folder: Path) -> None:
    (shard_copy / "val-000001.receipt.json").unlink()

    def engine(shards: list[PlannedShard]) -> Stages:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        prepare(open_source(image_folder), shard_copy, SETTINGS, engine)
    with pytest.raises(ValueError, match="has not finished; start it again to go on"):
        open_dataset(shard_copy)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda folder: (folder / "train-000002.tar").unlink(), id="tar deleted"),
        pytest.param(lambda folder: cut_file(folder / "train-000002.tar", 700), id="tar cut"),
        pytest.param(
            lambda folder: (folder / "train-000002.receipt.json").write_text("{"), id="receipt"
        ),
        pytest.param(lambda folder: (folder / "train-000002.idx").unlink(), id="index"),
        pytest.param(lambda folder: (folder / "train-000002.sums.npz").unlink(), id="sums"),
        pytest.param(lambda folder: cut_file(folder / "train-000002.sums.npz", 9), id="cut sums"),
    ],
)
def test_only_the_harmed_shard_is_made_again_and_is_the_same(
    image_folder: Path, shard_folder: Path, shard_copy: Path, harm: Callable[[Path], None]
) -> None:
    harm(shard_copy)
    outcome = prepare_here(image_folder, shard_copy)
    assert (outcome.num_made, outcome.num_kept) == (1, 6)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


@pytest.mark.parametrize("name", ["train.index.npy", DATASET_NAME, QUARANTINE_NAME, "_info.json"])
def test_files_over_all_shards_are_written_anew(
    image_folder: Path, shard_folder: Path, shard_copy: Path, name: str
) -> None:
    (shard_copy / name).write_bytes(b"damaged")
    assert prepare_here(image_folder, shard_copy).num_made == 0
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


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


def test_the_bytes_do_not_depend_on_where_source_and_output_lie(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    prepare_here(source, tmp_path / "one")
    moved = Path(shutil.copytree(source, tmp_path / "elsewhere" / "copy"))
    prepare_here(moved, tmp_path / "two")
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_a_split_of_which_nothing_can_be_prepared_is_refused(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    for name in CLASSES:
        (source / "val" / name / "00.jpg").write_text("no image")
    expected = r"none of the 3 originals of val could be .*val/ant/00.jpg: not an image"
    with pytest.raises(ValueError, match=expected):
        prepare_here(source, tmp_path / "out")
    with pytest.raises(ValueError, match="has not finished"):
        open_dataset(tmp_path / "out")


def test_a_shard_of_which_nothing_can_be_prepared_is_an_empty_shard(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    (source / "train/ant/00.jpg").write_text("no image")
    outcome = prepare_here(source, tmp_path / "out", images_per_shard=1)
    sizes = [shard.samples for shard in outcome.dataset.split("train").shards]
    assert sorted(sizes) == [0] + 11 * [1]
    assert outcome.dataset.split("train").written == 11


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
    from PIL import Image

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


def test_a_failing_disk_ends_the_task_and_quarantines_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(places: FilePlaces, position: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    task = first_task(small_source(tmp_path / "source"), tmp_path)
    monkeypatch.setattr(FilePlaces, "read", fail)
    with pytest.raises(OSError, match="Input/output error"):
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


def test_classes_that_differ_in_case_only_keep_their_images(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    shutil.copytree(source / "train/cat", source / "train/Cat")
    if len(os.listdir(source / "train")) == len(CLASSES):
        pytest.skip("this file system does not tell upper from lower case")
    dataset = prepare_here(source, tmp_path / "out").dataset
    assert dataset.classes == ("Cat", *CLASSES)
    assert Counter(dataset.index("train")["label"].tolist()) == {0: 4, 1: 4, 2: 4, 3: 4}


def as_archives(source: Path, root: Path) -> Path:
    """The train split of image folders as a tar of class tars, files and classes backwards."""
    classes = {
        name: {
            path.name: path.read_bytes()
            for path in sorted((source / "train" / name).iterdir(), reverse=True)
        }
        for name in reversed(CLASSES)
    }
    root.mkdir()
    (root / "all.tar").write_bytes(tar_of_tars(classes))
    return root / "all.tar"


def test_archives_and_folders_of_equal_names_give_the_same_bytes(
    image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "folders").mkdir()
    (tmp_path / "folders/train").symlink_to(image_folder / "train")
    archive = as_archives(image_folder, tmp_path / "archives")
    before = archive.stat().st_mtime_ns
    prepare_here(tmp_path / "folders", tmp_path / "one")
    outcome = prepare_here(archive, tmp_path / "two", num_workers=2)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")
    assert outcome.dataset.split("train").quarantined == len(BROKEN)
    assert os.listdir(archive.parent) == ["all.tar"] and archive.stat().st_mtime_ns == before


def test_nothing_is_written_beside_the_originals(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in source.rglob("*")}

    before = state()
    prepare_here(source, tmp_path / "out")
    assert state() == before


@pytest.mark.parametrize("from_archive", [False, True])
def test_a_source_that_vanishes_midway_is_a_clear_error_and_can_go_on(
    tmp_path: Path, from_archive: bool
) -> None:
    source = small_source(tmp_path / "source")
    root = as_archives(source, tmp_path / "archives") if from_archive else source
    prepare_here(root, tmp_path / "undisturbed", images_per_shard=3)
    away = tmp_path / "away"
    opened = open_source(root)
    done = 0

    def unmount(_: Tally) -> None:
        nonlocal done
        done += 1
        if done == 7:
            # An archive stays readable while it is open: what a lost disk gives is a short read.
            if from_archive:
                shutil.copy(root, away)
                os.truncate(root, 2000)
            else:
                root.rename(away)

    def engine(shards: list[PlannedShard]) -> Stages:
        for shard in shards:
            make_shard(shard.task(), unmount)
        return Counter()

    message = "was cut off while it was read" if from_archive else "was unmounted; start again"
    with pytest.raises(OSError, match=message):
        prepare(opened, tmp_path / "out", Settings(images_per_shard=3), engine)
    assert not list((tmp_path / "out").glob(QUARANTINE_NAME))
    if from_archive:  # this process still has that file open
        shutil.copyfile(away, root)
    else:
        away.rename(root)
    outcome = prepare_here(root, tmp_path / "out", images_per_shard=3)
    assert outcome.num_kept == 2 and outcome.num_made > 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "undisturbed")


@pytest.mark.parametrize("ending", ["tar", "idx", "sums.npz", "receipt.json"])
def test_a_full_disk_is_a_clear_error_and_keeps_finished_shards(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"{out}/train-000002.{ending}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = small_source(tmp_path / "source")
    prepare_here(source, tmp_path / "undisturbed", images_per_shard=3)
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        patch.setattr("os.fsync", fill)  # where delayed allocation fails
        prepare_here(source, out, images_per_shard=3)
    with pytest.raises(ValueError, match="has not finished; start it again to go on"):
        open_dataset(out)
    assert len(list(out.glob("*.receipt.json"))) == 2 and not list(out.glob("*.tmp"))
    outcome = prepare_here(source, out, images_per_shard=3)
    assert (outcome.num_kept, outcome.num_made) == (2, 3)
    assert folder_bytes(out) == folder_bytes(tmp_path / "undisturbed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB: a few shards."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_small_disk_keeps_what_fitted_and_a_larger_one_goes_on(
    small_disk: Path, tmp_path: Path, num_workers: int
) -> None:
    source = small_source(tmp_path / "source")
    prepare_here(source, tmp_path / "undisturbed", images_per_shard=1)
    assert sum(map(len, folder_bytes(tmp_path / "undisturbed").values())) > 8e6
    with pytest.raises(OSError, match="No space left on device"):
        prepare_here(source, small_disk, images_per_shard=1, num_workers=num_workers)
    num_finished = len(list(small_disk.glob("*.receipt.json")))
    assert num_finished > 0
    shutil.copytree(small_disk, tmp_path / "large")
    outcome = prepare_here(source, tmp_path / "large", images_per_shard=1)
    assert outcome.num_kept == num_finished
    assert folder_bytes(tmp_path / "large") == folder_bytes(tmp_path / "undisturbed")


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


def test_a_second_writer_is_refused_while_the_first_one_works(
    image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def engine(shards: list[PlannedShard]) -> Stages:
        with pytest.raises(OSError, match=f"another process is writing into {out}"):
            prepare_here(image_folder, out)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(open_source(image_folder), out, SETTINGS, engine)
    assert prepare_here(image_folder, out).num_kept == 0  # the lock went with the first


def test_what_could_not_be_read_is_tried_again_at_the_next_start(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=2, val_per_class=1)
    undisturbed = prepare_here(source, tmp_path / "undisturbed").dataset
    away = tmp_path / "disk"
    (source / "train/ant/00.jpg").rename(away)
    (source / "train/ant/00.jpg").symlink_to(away.with_name("unmounted"))
    out = tmp_path / "out"
    first = prepare_here(source, out).dataset.split("train")
    assert (first.written, first.quarantined) == (5, 1)
    entry = json.loads((out / QUARANTINE_NAME).read_text())
    assert entry["reason"] == "unreadable: broken symbolic link" and entry["sha256"] is None
    away.rename(away.with_name("unmounted"))
    second = prepare_here(source, out).dataset
    assert second.fingerprint("train") == undisturbed.fingerprint("train")
    assert (out / QUARANTINE_NAME).read_text() == ""


def test_what_can_still_not_be_read_leaves_its_finished_shard_as_it_is(tmp_path: Path) -> None:
    source, out = small_source(tmp_path / "source"), tmp_path / "out"
    (source / "train/ant/link.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(source / "train/bee/pipe.jpg")
    (source / "train/cat/circle").symlink_to(source / "train", target_is_directory=True)
    first = prepare_here(source, out)
    assert first.dataset.split("train").quarantined == 3
    receipts = {path: path.stat().st_mtime_ns for path in out.glob("*.receipt.json")}

    def engine(missing: list[PlannedShard]) -> Stages:
        assert missing == [] and (out / DATASET_NAME).exists()
        return Counter()

    prepare(open_source(source), out, SETTINGS, engine)
    assert {path: path.stat().st_mtime_ns for path in receipts} == receipts


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


def test_running_out_of_memory_ends_the_run_and_quarantines_nothing(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pipeline.prepare.decode", fail)
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


def test_what_killed_writers_left_goes_with_the_next_start(
    image_folder: Path, shard_folder: Path, shard_copy: Path
) -> None:
    for name in ("train-000001.tar", "dataset.json"):
        (shard_copy / f"{name}.0123456789abcdef.tmp").write_bytes(b"half")
    assert prepare_here(image_folder, shard_copy).num_made == 0
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)
