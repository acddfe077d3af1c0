"""A shard that fails before it is due, or that another process holds, is waited for in reason."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import pipeline.stage_trouble
import pipeline.transfer
from pipeline.loader import LoaderConfig
from pipeline.locations import location
from pipeline.manifest import Shard, open_dataset
from pipeline.order import order
from pipeline.stage_folder import LOCK_NAME, Download, Elsewhere, StageFolder
from pipeline.stage_trouble import ROOM_SECONDS, StageTrouble
from pipeline.staging import Stage
from tests.pipeline.conftest import (
    Open,
    WebStore,
    kept,
    opener,
    sizes,
    staged_numbers,
    start_loader,
)


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens loaders (batch 4, one step ahead) and closes them after the test."""
    yield from opener(batch_size=4, prefetch=1, threads=1)


@dataclass
class Clock:
    """What the code under test takes for the time."""

    now: float = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    told = Clock()
    monkeypatch.setattr("pipeline.stage_trouble.time.monotonic", lambda: told.now)
    return told


def trouble_of(num_shards: int, folder: Path, **options: float) -> StageTrouble:
    """Of shards of 9 bytes, staged to a folder that holds 100."""
    shards = [
        Shard(name=f"{i}.tar", samples=1, bytes=9, sha256=f"{i:064}") for i in range(num_shards)
    ]
    return StageTrouble(folder, shards, StageFolder(folder, 100, **options))


# ---- transfers that broke before anybody waited ----


def stage_of(store: WebStore, folder: StageFolder) -> Stage:
    """Stages all five shards ahead; nobody waits for any."""
    shards = open_dataset(store.folder).split("train").shards
    stage = Stage(location(store.url), shards, folder, window="all", steps_ahead=1)
    stage.begin(np.repeat(range(5), 8), batch_size=2, step=0)
    return stage


def wait_until(store: WebStore, name: str, num_requests: int) -> None:
    soon = time.monotonic() + 60
    while store.num_requests[name] < num_requests:
        assert time.monotonic() < soon
        time.sleep(0.005)


@pytest.mark.usefixtures("hasty")
def test_a_shard_that_failed_ahead_of_use_is_tried_again_when_it_is_due(
    web_store: WebStore, tmp_path: Path
) -> None:
    name = "train-000003.tar"
    web_store.faults[name] = ["refuse"] * pipeline.transfer.NUM_TRIES
    stage = stage_of(web_store, StageFolder(tmp_path / "stage"))
    wait_until(web_store, name, pipeline.transfer.NUM_TRIES)
    assert stage.get(3).path.name.endswith(name)  # the store has recovered since
    web_store.faults["train-000004.tar"] = ["refuse"] * 100
    stage.close()


@pytest.mark.usefixtures("hasty")
def test_a_shard_that_failed_ahead_of_use_is_tried_again_before_it_is_due(
    web_store: WebStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.stage_trouble, "REST_SECONDS", 0.2)
    web_store.faults["train-000003.tar"] = ["refuse"] * (2 * pipeline.transfer.NUM_TRIES + 1)
    stage = stage_of(web_store, StageFolder(tmp_path / "stage"))
    soon = time.monotonic() + 60
    while staged_numbers(tmp_path / "stage") != set(range(5)):
        assert time.monotonic() < soon
        time.sleep(0.01)
    stage.close()


@pytest.mark.usefixtures("hasty")
def test_a_reader_has_all_tries_of_a_transfer_of_its_own_and_is_told_what_failed(
    web_store: WebStore, tmp_path: Path
) -> None:
    name = "train-000003.tar"
    web_store.faults[name] = ["refuse"] * 100
    stage = stage_of(web_store, StageFolder(tmp_path / "stage"))
    wait_until(web_store, name, pipeline.transfer.NUM_TRIES)
    with pytest.raises(ValueError, match=f"shard {name} cannot be brought .*; tried 5 times"):
        stage.get(3)
    assert web_store.num_requests[name] == 2 * pipeline.transfer.NUM_TRIES
    stage.close()


@pytest.mark.usefixtures("hasty")
def test_a_store_that_recovers_before_a_shard_is_due_does_not_end_the_epoch(
    web_store: WebStore, tmp_path: Path, opened: Open
) -> None:
    expected = [kept(batch) for batch in opened(web_store.folder, window=1)]
    rows = order([shard.samples for shard in open_dataset(web_store.folder).split("train").shards],
                 seed=0, epoch=0, window=1)  # fmt: skip
    last = open_dataset(web_store.folder).index("train")["shard"][rows[-4]]
    name = f"train-{last:06d}.tar"
    web_store.faults[name] = ["refuse"] * pipeline.transfer.NUM_TRIES
    loader = opened(location(web_store.url), window=1, stage_dir=tmp_path / "stage")
    found = []
    for batch in loader:
        found.append(kept(batch))
        if len(found) == 1:
            wait_until(web_store, name, pipeline.transfer.NUM_TRIES)
    assert found == expected


# ---- other processes ----


def test_a_suspended_process_that_brings_a_shard_is_named_by_its_file(
    web_store: WebStore, tmp_path: Path, opened: Open
) -> None:
    stage = tmp_path / "stage"
    expected = [kept(batch) for batch in opened(web_store.folder)]
    for number in range(5):
        web_store.faults[f"train-{number:06d}.tar"] = ["stall"]
    process = start_loader(web_store.url, stage)
    try:
        assert web_store.stalled.wait(120)
        while not list(stage.glob("*.part")):
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        web_store.faults.clear()
        loader = opened(location(web_store.url), stage_dir=stage, stage_patience_seconds=0.5)
        with pytest.raises(ValueError, match=rf"train-0.*tar is being brought by another process "
                           rf"into {stage}/.*\.part, to which nothing was added for 0.5 s.*fuser"
                           ) as caught:  # fmt: skip
            list(loader)
        (part,) = (path for path in stage.glob("*.part") if f"fuser {path}`" in str(caught.value))
        assert part.stat().st_size < max(sizes(web_store.folder))
    finally:
        process.kill()
        process.communicate()
    assert [kept(batch) for batch in loader] == expected  # its file goes with it


def test_patience_counts_from_the_last_byte_and_from_the_beginning_of_the_wait(
    tmp_path: Path, clock: Clock
) -> None:
    trouble = trouble_of(1, tmp_path, patience_seconds=50)
    part = tmp_path / "x.part"
    for num_bytes in range(0, 9, 3):  # slow, but it gets on
        trouble.is_elsewhere(0, Elsewhere(part, num_bytes, changed_ns=num_bytes))
        clock.now += 49
        trouble.require_hope(0, started=1000.0)
    trouble.is_elsewhere(0, Elsewhere(part, 6, changed_ns=7))  # begun again: no byte more
    clock.now += 49
    trouble.require_hope(0, started=1000.0)
    trouble.is_elsewhere(0, Elsewhere(part, 6, changed_ns=7))
    clock.now += 2
    trouble.require_hope(0, started=clock.now - 49)  # this reader came late
    with pytest.raises(ValueError, match=f"into {part}, to which nothing was added for 50 s"):
        trouble.require_hope(0, started=1000.0)
    trouble.begins(0)
    trouble.require_hope(0, started=1000.0)


def test_others_that_bring_one_shard_do_not_hide_that_there_is_no_room_for_another(
    tmp_path: Path, clock: Clock
) -> None:
    trouble = trouble_of(2, tmp_path)
    while clock.now < 1000 + ROOM_SECONDS + 2:
        trouble.is_elsewhere(0, Elsewhere(tmp_path / "0.part", int(clock.now), 0))
        trouble.has_no_room([1], "all of it is in use")
        clock.now += 1
    with pytest.raises(ValueError, match="no room for 1.tar for 120 s: all of it is in use"):
        trouble.require_hope(1, started=1000.0)
    trouble.require_hope(0, started=1000.0)  # has no need of room, and 600 s of patience


def test_no_room_for_a_shard_is_told_to_who_waits_for_that_one_or_behind_it(
    tmp_path: Path, clock: Clock
) -> None:
    trouble = trouble_of(4, tmp_path)
    trouble.begins(0)  # a slow transfer
    trouble.is_elsewhere(3, Elsewhere(tmp_path / "3.part", 1, 0))
    trouble.has_no_room([1, 2, 3], "all of it is in use")  # wanted ahead
    clock.now += ROOM_SECONDS + 1
    trouble.require_hope(0, started=1000.0)
    trouble.require_hope(3, started=1000.0)
    trouble.require_hope(1, started=clock.now)  # this reader came late
    for number in (1, 2):
        with pytest.raises(ValueError, match=f"no room for {number}.tar for 120 s: all of it"):
            trouble.require_hope(number, started=1000.0)
    trouble.is_elsewhere(1, Elsewhere(tmp_path / "1.part", 1, 0))
    trouble.require_hope(1, started=1000.0)
    trouble.has_no_room([3], "all of it is in use")  # who brought it gave up
    clock.now += ROOM_SECONDS + 1
    with pytest.raises(ValueError, match="no room for 3.tar"):
        trouble.require_hope(3, started=1000.0)
    trouble.begins(2)  # others let go of something
    trouble.require_hope(3, started=1000.0)


def test_room_that_a_transfer_of_this_loader_takes_is_waited_for(
    web_store: WebStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes way once it is there, however slowly it comes: its own tries bound that."""
    monkeypatch.setattr(pipeline.stage_trouble, "ROOM_SECONDS", 0.1)
    monkeypatch.setattr("pipeline.staging.IDLE_POLL_SECONDS", 0.02)
    shards = open_dataset(web_store.folder).split("train").shards
    web_store.faults["train-000000.tar"] = ["stall"]
    folder = StageFolder(tmp_path / "stage", sum(sorted(sizes(web_store.folder))[-2:]))
    stage = Stage(location(web_store.url), shards, folder, window=1, steps_ahead=0)
    stage.begin(np.repeat([1, 0, 2], 8), batch_size=8, step=0)
    assert stage.get(1) and web_store.stalled.wait(60)

    def go_on() -> None:
        monkeypatch.setattr(pipeline.stage_trouble, "ROOM_SECONDS", ROOM_SECONDS)
        web_store.go_on.set()

    threading.Timer(1.0, go_on).start()
    assert stage.get(2).path.name.endswith("train-000002.tar")
    stage.close()


def test_a_folder_that_another_process_keeps_locked_is_named(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path, 100, patience_seconds=0.2)
    wanted = Shard(name="train-000000.tar", samples=1, bytes=9, sha256="0" * 64)
    descriptor = os.open(tmp_path / LOCK_NAME, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # another open file: as good as another process
        with pytest.raises(TimeoutError, match="has locked the folder for 0.2 s") as caught:
            folder.claim(wanted)
        assert caught.value.filename == str(tmp_path / LOCK_NAME)
        with pytest.raises(ValueError, match=f"--stage-dir {tmp_path} cannot be used: another"):
            StageFolder(tmp_path, 100, patience_seconds=0.2)
    finally:
        os.close(descriptor)
    assert not isinstance(folder.claim(wanted), Elsewhere)


def test_what_is_given_up_while_the_folder_is_locked_is_anybodys_afterwards(
    tmp_path: Path,
) -> None:
    folder, other = (StageFolder(tmp_path, 100, patience_seconds=0.2) for _ in range(2))
    wanted = Shard(name="train-000000.tar", samples=1, bytes=9, sha256="0" * 64)
    download = folder.claim(wanted)
    assert isinstance(download, Download) and isinstance(other.claim(wanted), Elsewhere)
    descriptor = os.open(tmp_path / LOCK_NAME, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # another open file: as good as another process
        folder.abandon(download)
    finally:
        os.close(descriptor)
    again = other.claim(wanted)
    assert isinstance(again, Download)
    other.abandon(again)
    assert not list(tmp_path.glob("*.part"))


def test_no_patience_is_refused() -> None:
    with pytest.raises(ValueError, match="stage patience must be over 0 seconds, not 0"):
        LoaderConfig(shards=Path("shards"), batch_size=4, stage_patience_seconds=0)
