"""A shard that can have more originals now is made beside the old one, which stays till then."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.renewal
from pipeline.atomic import put_whole
from pipeline.engines import run_tasks
from pipeline.locations import location
from pipeline.manifest import DATASET_NAME, QUARANTINE_NAME, open_dataset
from pipeline.originals import FilePlaces
from pipeline.plan import PlannedShard, Settings
from pipeline.prepare import Outcome, prepare
from pipeline.renewal import RENEWAL_NAME
from pipeline.shard_maker import Stages, make_shard
from pipeline.sources import open_source
from tests.conftest import IMAGES_PER_SHARD, folder_bytes, prepare_here, write_source
from tests.pipeline.conftest import small_source

SETTINGS = Settings(images_per_shard=IMAGES_PER_SHARD)
MOVES = 2 * 4  # files of two shards that are put in place


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


class Lacking:
    """A source of five shards, two of which lack an original that can be read since."""

    def __init__(self, folder: Path, out: Path | None = None) -> None:
        self.source, self.out = small_source(folder / "source"), out or folder / "out"
        prepare_here(self.source, folder / "undisturbed", images_per_shard=3)
        self.expected = folder_bytes(folder / "undisturbed")
        self.links = [self.source / "train" / name for name in ("ant/00.jpg", "cat/03.jpg")]
        for link in self.links:
            link.rename(folder / link.parent.name)
            link.symlink_to(folder / "unmounted" / link.parent.name)
        assert self.prepare().dataset.split("train").quarantined == 2
        self.before = self.files()
        (folder / "unmounted").mkdir()
        for link in self.links:
            (folder / link.parent.name).rename(link.readlink())

    def prepare(self, make: Callable[[PlannedShard], Stages] | None = None) -> Outcome:
        def engine(shards: list[PlannedShard]) -> Stages:
            if make is None:
                return run_tasks(shards, 1, lambda _: None)
            return sum(map(make, shards), Counter())

        return prepare(open_source(self.source), self.out, Settings(images_per_shard=3), engine)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir() if path.is_file()}


def made(shard: PlannedShard) -> Stages:
    return make_shard(shard.task(), lambda _: None)


def test_readers_have_the_old_data_set_until_all_new_shards_are_made(tmp_path: Path) -> None:
    lacking = Lacking(tmp_path)
    num_made = 0

    def make(shard: PlannedShard) -> Stages:
        nonlocal num_made
        stages = made(shard)
        num_made += 1
        assert lacking.files() == lacking.before
        return stages

    outcome = lacking.prepare(make)
    assert num_made == outcome.num_made == 2 and outcome.num_kept == 3
    assert folder_bytes(lacking.out) == lacking.expected  # and nothing else is left there


def test_what_fails_or_is_killed_meanwhile_costs_the_data_set_nothing(tmp_path: Path) -> None:
    lacking = Lacking(tmp_path)
    num_begun = 0

    def make(shard: PlannedShard) -> Stages:
        nonlocal num_begun
        num_begun += 1
        if num_begun == 2:
            raise OSError("disk full")
        return made(shard)

    with pytest.raises(OSError, match="disk full"):
        lacking.prepare(make)
    assert lacking.files() == lacking.before
    assert open_dataset(lacking.out).split("train").written == 10
    left = lacking.out / RENEWAL_NAME / "train-000000.tar.0123456789abcdef.tmp"
    left.write_bytes(b"of a killed writer")
    lacking.prepare(make)
    assert num_begun == 3  # the one that was made is not made again
    assert folder_bytes(lacking.out) == lacking.expected


@pytest.mark.parametrize("num_moves", range(MOVES))
def test_killed_between_any_two_moves_the_next_start_ends_it(
    tmp_path: Path, num_moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Lacking(tmp_path)
    moves = 0

    def move(source: Path, path: Path) -> None:
        nonlocal moves
        if moves == num_moves:
            raise KeyboardInterrupt
        moves += 1
        put_whole(source, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.renewal, "put_whole", move)
        lacking.prepare()
    with pytest.raises(ValueError, match="has not finished; start it again to go on"):
        open_dataset(lacking.out)  # never old shards beside new ones
    lacking.prepare()
    assert folder_bytes(lacking.out) == lacking.expected


def test_a_successor_that_lacks_what_the_old_shard_has_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Lacking(tmp_path)
    read = FilePlaces.read

    def refuse(places: FilePlaces, position: int) -> bytes:
        if places.path(position) not in map(str, lacking.links):
            raise PermissionError(13, "Permission denied")
        return read(places, position)

    with monkeypatch.context() as patch:
        patch.setattr(FilePlaces, "read", refuse)
        outcome = lacking.prepare()
    assert (outcome.num_made, outcome.num_kept) == (0, 5)
    assert folder_bytes(lacking.out) == lacking.before
    lacking.prepare()
    assert folder_bytes(lacking.out) == lacking.expected


def test_a_successor_of_bytes_that_changed_meanwhile_is_made_again(tmp_path: Path) -> None:
    lacking = Lacking(tmp_path)
    num_made = 0

    def make(shard: PlannedShard) -> Stages:
        nonlocal num_made
        num_made += 1
        if num_made == 3:
            raise KeyboardInterrupt
        stages = made(shard)
        if num_made == 2:
            raise KeyboardInterrupt
        return stages

    with pytest.raises(KeyboardInterrupt):
        lacking.prepare(make)
    photographs = [link.read_bytes() for link in lacking.links]
    for link, data in zip(lacking.links, reversed(photographs), strict=True):
        link.resolve().write_bytes(data)
    lacking.prepare()
    prepare_here(lacking.source, tmp_path / "expected", images_per_shard=3)
    assert folder_bytes(lacking.out) == folder_bytes(tmp_path / "expected")


def test_where_another_shard_is_missing_the_old_ones_stay_too(tmp_path: Path) -> None:
    lacking = Lacking(tmp_path)
    (lacking.out / "val-000000.receipt.json").unlink()

    def fail(_: PlannedShard) -> Stages:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        lacking.prepare(fail)
    assert not (lacking.out / DATASET_NAME).exists()
    gone = {DATASET_NAME, "val-000000.receipt.json"}
    kept = {name: data for name, data in lacking.before.items() if name not in gone}
    assert lacking.files() == kept
    outcome = lacking.prepare()
    assert outcome.num_made == 3
    assert folder_bytes(lacking.out) == lacking.expected


def test_a_store_gets_the_same_and_keeps_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[s3])")
    lacking = Lacking(tmp_path, location("memory://test-renewal/shards"))

    def make(shard: PlannedShard) -> Stages:
        stages = made(shard)
        names = {"preparing.json"} | lacking.before.keys()
        assert lacking.files().keys() == names
        return stages

    assert lacking.prepare(make).num_made == 2
    there = {path.name: path.read_bytes() for path in lacking.out.iterdir()}
    assert there == lacking.expected
