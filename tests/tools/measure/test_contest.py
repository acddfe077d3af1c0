"""A whole measurement with contestants that raise, die, hang or are absent: the rest goes on.

This file is also the module of those contestants: their processes import it by its name.
"""

import importlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from tools.measure.contest import LoaderContest, _our_entrants, run_loader_contest
from tools.measure.contestants import Entrant
from tools.measure.feed import Feed, FeedSettings
from tools.measure.host import Host, timed_pass
from tools.measure.rounds import Pass, PassError


class FakeFeed:
    """Delivers two batches of grey; in its second pass it does what its name says."""

    def __init__(self, name: str, settings: FeedSettings) -> None:
        self._name, self._scratch = name, settings.scratch
        self._batch_size = settings.batch_size
        self._num_passes = 0

    def batches(self) -> Iterator[torch.Tensor]:
        self._num_passes += 1
        if self._num_passes == 2 and self._name == "dies":
            os._exit(9)
        if self._num_passes == 2 and self._name == "raises":
            raise RuntimeError("cannot\ngo on")
        if self._name == "interrupted":
            signal.raise_signal(signal.SIGINT)
        if self._name == "hangs":
            (self._scratch / "hanging").touch()
            time.sleep(60)
        side = 225 if self._name == "wrong-size" else 224
        for _ in range(2):
            yield torch.zeros(self._batch_size, 3, side, side)

    def close(self) -> None:
        (self._scratch / f"{self._name}-closed").touch()


def open_feed(name: str, settings: FeedSettings) -> FakeFeed:
    return FakeFeed(name, settings)


def fake(name: str, needs: tuple[str, ...] = ()) -> Entrant:
    return Entrant(name=name, module=__name__, needs=needs, install="pip install it")


def feed_settings(folder: Path) -> FeedSettings:
    return FeedSettings(shards=folder, batch_size=4, num_threads=1, seed=0, scratch=folder)


def contest(shards: Path, **changes: Any) -> LoaderContest:
    chosen: dict[str, Any] = {
        "shards": shards,
        "backends": ("numpy",),
        "peers": (),
        "num_threads": 1,
        "batch_size": 4,
        "repeats": 5,
        "min_images": 60,
        **changes,
    }
    return LoaderContest(**chosen)


def test_peers_that_are_absent_raise_or_die_are_reported_and_the_rest_is_measured(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = [fake("raises"), fake("dies"), fake("absent", needs=("no_such_module",))]
    monkeypatch.setattr("tools.measure.contest.PEERS", {one.name: one for one in fakes})
    peers = tuple(one.name for one in fakes)
    report = run_loader_contest(contest(shard_folder, peers=peers))
    assert [result["name"] for result in report["results"]] == ["numpy"]
    assert report["not_measured"] == {
        "absent": "not installed (no_such_module): pip install it",
        "raises": "RuntimeError: cannot go on",
        "dies": "its process died, exit code 9",
    }
    assert report["ratios"] == {} and report["differs"] == {"numpy": ""}
    assert report["settings"] == {
        "threads": 1,
        "batch_size": 4,
        "repeats": 5,
        "images_per_pass": 76,  # 39 images twice, in whole batches
        "distinct_images": 39,
        "encodings": ["jpeg"],
        "cold": False,
        "seed": 0,
    }


def test_a_contestant_that_delivers_something_else_than_agreed_is_refused(tmp_path: Path) -> None:
    settings = feed_settings(tmp_path)
    with pytest.raises(ValueError, match=r"\(4, 3, 225, 225\) .*, not \(4, 3, 224, 224\)"):
        timed_pass(FakeFeed("wrong-size", settings), settings)


def test_a_contestant_that_hangs_is_given_up_and_ended(tmp_path: Path) -> None:
    settings = feed_settings(tmp_path)
    with Host(fake("hangs"), settings, patience_seconds=0.2, end_seconds=0.2) as host:
        with pytest.raises(PassError, match="no answer within 0.2 s"):
            host.run_pass()
        assert not host._process.is_alive()  # before the others' rounds go on


def test_ctrl_c_does_not_reach_a_contestant(tmp_path: Path) -> None:
    """It works on until the measurement, which is interrupted as well, ends it."""
    with Host(fake("interrupted"), feed_settings(tmp_path)) as host:
        assert host.run_pass().num_images == 8


def test_an_interrupted_measurement_ends_a_contestant_that_works_and_closes_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = feed_settings(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        with Host(fake("hangs"), settings, end_seconds=50) as host:
            host._connection.send(True)
            while not (tmp_path / "hanging").exists():
                time.sleep(0.01)
            raise KeyboardInterrupt
    assert (tmp_path / "hangs-closed").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"repeats": 4}, "repeats must be at least 5, not 4"),
        ({"num_threads": 0}, "threads must be at least 1, not 0"),
        ({"batch_size": 0}, "batch size must be at least 1, not 0"),
        ({"min_images": 3}, "images must be at least 4, not 3"),
    ],
)
def test_a_contest_that_means_nothing_is_refused(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        contest(tmp_path, **changes)


class HostHere:
    """A contestant in this process: what it does elsewhere is tested above."""

    def __init__(self, entrant: Entrant, settings: FeedSettings) -> None:
        self.name = entrant.label
        self._settings = settings
        opened = importlib.import_module(entrant.module)
        self._feed: Feed = opened.open_feed(entrant.name, settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._feed.close()

    def run_pass(self) -> Pass:
        return timed_pass(self._feed, self._settings)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Python and importing torch takes seconds for each contestant."""
    monkeypatch.setattr("tools.measure.contest.Host", HostHere)


@pytest.mark.usefixtures("in_this_process")
def test_a_peer_that_reads_no_raw_shards_is_told_and_left_out(raw_shard_folder: Path) -> None:
    report = run_loader_contest(contest(raw_shard_folder, peers=("torch",)))
    assert [result["name"] for result in report["results"]] == ["numpy-raw"]
    assert report["not_measured"] == {"torch": "reads no raw shards"}


@pytest.mark.usefixtures("in_this_process")
def test_raw_shards_are_measured_by_turns_with_jpeg_ones_and_compared(
    shard_folder: Path, raw_shard_folder: Path
) -> None:
    report = run_loader_contest(contest(shard_folder, raw_shards=raw_shard_folder))
    assert [result["name"] for result in report["results"]] == ["numpy", "numpy-raw"]
    assert list(report["ratios"]) == ["numpy-raw/numpy"]
    with pytest.raises(ValueError, match="raw shards are compared with JPEG ones"):
        run_loader_contest(contest(raw_shard_folder, raw_shards=raw_shard_folder))
    with pytest.raises(ValueError, match="raw shards are compared with JPEG ones"):
        run_loader_contest(contest(shard_folder, raw_shards=shard_folder))


def test_a_pass_tells_the_caller_s_time_and_the_memory_kept(
    shard_folder: Path, tmp_path: Path
) -> None:
    done = timed_pass(FakeFeed("fine", feed_settings(tmp_path)), feed_settings(tmp_path))
    assert done.caller_seconds is not None and 0 < done.caller_seconds <= 2 * done.seconds
    assert done.anonymous_bytes is not None and 10e6 < done.anonymous_bytes < 10e9


def test_a_cold_pass_finds_its_files_outside_the_page_cache(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evicted: list[set[str]] = []
    monkeypatch.setattr(
        "tools.measure.host.evict", lambda paths: evicted.append({path.name for path in paths})
    )
    settings = replace(feed_settings(shard_folder), scratch=shard_folder / "nothing")
    timed_pass(FakeFeed("fine", settings), settings)
    assert evicted == []
    timed_pass(FakeFeed("fine", settings), replace(settings, cold=True))
    assert evicted == [{path.name for path in shard_folder.glob("*.tar")}]


def test_a_backend_that_does_not_work_is_told_of_each_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_works(asked: str, settings_of: object, *, on_gpu: bool, encoding: str) -> None:
        raise ValueError(f"no {asked} for {encoding}")

    monkeypatch.setattr("tools.measure.contest.open_first", none_works)
    folders = {"jpeg": Path("a"), "raw": Path("b")}
    assert _our_entrants(("dali-cpu",), folders) == (
        [],
        {"dali-cpu": "no dali-cpu for jpeg", "dali-cpu-raw": "no dali-cpu for raw"},
    )
