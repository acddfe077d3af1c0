"""Every original is written or accounted for; interruptions and restarts change no byte."""

import dataclasses
import errno
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.manifest import DATASET_NAME, QUARANTINE_NAME, open_dataset
from pipeline.moments import MEAN_NAME, PCA_NAME
from pipeline.photographs import decode
from pipeline.plan import PlannedShard, Settings
from pipeline.prepare import prepare
from pipeline.shard_maker import Stages, make_shard
from pipeline.sources import open_source
from pipeline.tally import Tally
from tests.conftest import (
    BROKEN,
    CLASSES,
    IMAGES_PER_SHARD,
    cut_file,
    folder_bytes,
    prepare_here,
    tar_of_tars,
)
from tests.pipeline.conftest import small_source

SETTINGS = Settings(images_per_shard=IMAGES_PER_SHARD)


def prepared_bytes(folder: Path) -> dict[str, bytes]:
    """The files of a preparation, without the statistics computed from them later."""
    found = folder_bytes(folder)
    return {name: data for name, data in found.items() if name not in (PCA_NAME, MEAN_NAME)}


def test_the_outcome_counts_shards_stages_and_enlarged_images(
    image_folder: Path, tmp_path: Path
) -> None:
    outcome = prepare_here(image_folder, tmp_path / "out")
    assert (outcome.num_made, outcome.num_kept) == (7, 0)
    assert outcome.dataset == open_dataset(tmp_path / "out")
    stages = {"read", "decode", "resize", "encode", "verify", "sums", "write"}
    assert set(outcome.stages) == {(split, s) for split in ("train", "val") for s in stages}
    assert min(outcome.stages.values()) > 0
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


def test_shards_that_an_engine_made_with_other_codecs_become_no_data_set(tmp_path: Path) -> None:
    def engine(shards: list[PlannedShard]) -> Stages:
        there = {**Settings().as_dict()["versions"], "opencv": "4.0.0"}
        for shard in shards[:-1]:
            make_shard(shard.task(), lambda _: None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.images._codec_versions", lambda: there)
            make_shard(shards[-1].task(), lambda _: None)
        return Counter()

    source, out = open_source(small_source(tmp_path / "source")), tmp_path / "out"
    message = r"val-000000.tar was made with other settings \(opencv is 4\.0\.0 there, .* here\)"
    with pytest.raises(ValueError, match=message):
        prepare(source, out, SETTINGS, engine)
    with pytest.raises(ValueError, match="has not finished"):
        open_dataset(out)


def test_shards_that_an_engine_made_elsewhere_are_no_shards_here(tmp_path: Path) -> None:
    def engine(shards: list[PlannedShard]) -> Stages:
        for shard in shards:  # as a node does whose folder of this name is its own
            make_shard(dataclasses.replace(shard, out=elsewhere).task(), lambda _: None)
        return Counter()

    source, out = open_source(small_source(tmp_path / "source")), tmp_path / "out"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    message = rf"train-000000.tar was made and is not in {out}: the nodes do not share this output"
    with pytest.raises(OSError, match=message):
        prepare(source, out, SETTINGS, engine)


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


def test_what_killed_writers_left_goes_with_the_next_start(
    image_folder: Path, shard_folder: Path, shard_copy: Path
) -> None:
    for name in ("train-000001.tar", "dataset.json"):
        (shard_copy / f"{name}.0123456789abcdef.tmp").write_bytes(b"half")
    assert prepare_here(image_folder, shard_copy).num_made == 0
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)
