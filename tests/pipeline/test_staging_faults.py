"""A store, a disk or a program that fails: outlived, or one error that names what and the mend."""

import errno
import gc
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline.stage_trouble
import pipeline.transfer
from pipeline.loader import Loader, LoaderConfig
from pipeline.locations import location
from pipeline.manifest import Shard, open_dataset
from pipeline.order import order
from pipeline.stage_folder import NoRoom, StageFolder
from tests.conftest import flip_byte
from tests.pipeline.conftest import FAULTS, Open, WebStore, kept, opener, sizes, start_loader

NEVER_CLOSED = "for batch in Loader(config): pass"


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens loaders (batch 4, one step ahead) and closes them after the test."""
    yield from opener(batch_size=4, prefetch=1, threads=1)


def test_room_that_others_keep_for_ever_is_an_error_in_the_end(
    in_memory: Path, shard_folder: Path, tmp_path: Path, opened: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pipeline.stage_trouble, "ROOM_SECONDS", 0.5)
    bound = sum(sorted(sizes(shard_folder))[-2:])
    staging = {"stage_dir": tmp_path / "stage", "stage_bytes": bound, "window": 1}
    one = opened(in_memory, **staging, batch_size=1)
    held = iter(one)
    next(held)
    other = opened(in_memory, **staging, batch_size=1, seed=2)
    with pytest.raises(ValueError, match="no room for train-0.* are in use, also by other proc"):
        list(other)
    one.close()
    assert len(list(other)) > 0  # goes on where it was


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_transfer_that_breaks_now_and_then_is_not_noticed(
    web_store: WebStore, tmp_path: Path, fault: str, opened: Open
) -> None:
    for name in ("train-000001.tar", "train-000003.tar", "dataset.json", "train.index.npy"):
        if fault in ("refuse", "cut", "stall") or name.endswith(".tar"):
            web_store.faults[name] = [fault] * 2
    expected = [kept(batch) for batch in opened(web_store.folder)]
    loader = opened(location(web_store.url), stage_dir=tmp_path / "stage")
    assert [kept(batch) for batch in loader] == expected


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", FAULTS)
def test_one_that_stays_broken_names_shard_url_and_reason_and_can_be_mended(
    web_store: WebStore, tmp_path: Path, fault: str, opened: Open
) -> None:
    name, stage = "train-000003.tar", tmp_path / "stage"
    web_store.faults[name] = [fault] * 100
    loader = opened(location(web_store.url), stage_dir=stage)
    delivered = []
    with pytest.raises(ValueError, match=f"shard {name} cannot be brought from {web_store.url}/"
                       f"{name}: .*({FAULTS[fault]}).*; tried 5 times"):  # fmt: skip
        for batch in loader:
            delivered.append(kept(batch))
    assert not list(stage.glob("*000003*"))
    web_store.faults.clear()
    expected = [kept(batch) for batch in opened(web_store.folder)]
    delivered += [kept(batch) for batch in loader]
    assert delivered == expected


@pytest.mark.usefixtures("hasty")
def test_a_shard_that_is_gone_is_named(
    shard_copy: Path, tmp_path: Path, opened: Open
) -> None:
    loader = opened(shard_copy, stage_dir=tmp_path / "stage")
    (shard_copy / "train-000002.tar").unlink()
    with pytest.raises(ValueError, match="train-000002.tar cannot be brought from .*no such file"):
        list(loader)


def test_a_staged_shard_damaged_on_its_disk_is_named_with_the_mend(
    in_memory: Path, tmp_path: Path, opened: Open
) -> None:
    stage = tmp_path / "stage"
    list(opened(in_memory, stage_dir=stage))
    for path in stage.glob("*train-000002.tar"):
        row = open_dataset(in_memory).index("train")[20]
        flip_byte(path, int(row["offset"]) + 60)
        assert row["shard"] == 2
    loader = opened(in_memory, stage_dir=stage)
    told = f"sample {row['id']}: its bytes are not those written.*delete {path}, it"
    with pytest.raises(ValueError, match=told):
        list(loader)
    path.unlink()
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "step": 0})
    assert sum(len(batch.ids) for batch in loader) == 36


def test_a_stage_folder_that_goes_is_named(
    shard_folder: Path, tmp_path: Path, opened: Open
) -> None:
    stage = tmp_path / "stage"
    loader = opened(shard_folder, stage_dir=stage)
    shutil.rmtree(stage)
    with pytest.raises(ValueError, match=rf"train-00000\d.tar cannot be brought .*: {stage}/"):
        list(loader)


def test_a_full_disk_is_a_clear_error_and_leaves_no_partial_file(
    in_memory: Path, tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(source: Path, target: Path, *arguments: Any) -> None:
        target.write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    loader = opened(in_memory, stage_dir=tmp_path / "stage", stage_bytes=10**9)
    monkeypatch.setattr(pipeline.transfer, "_copy", fill)
    with pytest.raises(ValueError, match="disk of --stage-dir is full, train-0.*than 1.0 GB"):
        list(loader)
    loader.close()
    assert list((tmp_path / "stage").glob("*.part")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_says_so(
    web_store: WebStore, in_memory: Path, small_disk: Path, opened: Open
) -> None:
    for source in (in_memory, location(web_store.url)):
        with opened(source, stage_dir=small_disk, stage_bytes=10**9) as loader:
            with pytest.raises(ValueError, match="the disk of --stage-dir is full"):
                list(loader)
        assert list(small_disk.glob("*.part")) == []


def test_closed_in_mid_download_nothing_hangs_and_nothing_is_left(
    web_store: WebStore, tmp_path: Path, opened: Open
) -> None:
    stage, before = tmp_path / "stage", set(threading.enumerate())
    rows = order([shard.samples for shard in open_dataset(web_store.folder).split("train").shards],
                 seed=0, epoch=0, window=1)  # fmt: skip
    shards = open_dataset(web_store.folder).index("train")["shard"][rows].tolist()
    for number in set(range(5)) - {shards[0]}:  # all but the first in use
        web_store.faults[f"train-{number:06d}.tar"] = ["stall"]
    loader = opened(location(web_store.url), window=1, stage_dir=stage)
    next(iter(loader))  # later steps are being read ahead: the reader's threads wait for shards
    assert web_store.stalled.wait(120) and list(stage.glob("*.part"))
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 10
    assert list(stage.glob("*.part")) == []
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith("fullfeed")}


def test_a_loader_that_was_only_forgotten_lets_go_of_its_shards(
    shard_folder: Path, tmp_path: Path
) -> None:
    stage = tmp_path / "stage"
    loader = Loader(
        LoaderConfig(shards=shard_folder, batch_size=4, backend="numpy", stage_dir=stage)
    )
    next(iter(loader))
    thread = next(t for t in threading.enumerate() if t.name == "fullfeed-stage")
    del loader
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()
    folder = StageFolder(stage, 1)
    for _ in range(300):  # until threads that still read from a shard have ended
        try:
            folder.claim(Shard(name="other.tar", bytes=1, samples=1, sha256="0" * 64))
            break
        except NoRoom:
            time.sleep(0.1)
    assert not list(stage.glob("*train-*.tar"))  # evicted: nobody holds them


def test_a_program_that_never_closes_its_loader_ends_all_the_same(
    web_store: WebStore, tmp_path: Path
) -> None:
    for number in range(5):
        web_store.faults[f"train-{number:06d}.tar"] = ["stall"] * 5
    process = start_loader(web_store.url, tmp_path / "stage", NEVER_CLOSED)
    assert web_store.stalled.wait(120)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=150)  # its tries alone would last for five minutes
    assert process.returncode == -signal.SIGINT and b"KeyboardInterrupt" in said
