"""The fastest settings are chosen by taking turns, from those that may be, and kept."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backends import RenderSettings, Work
from pipeline.calibrate import (
    Choice,
    alternatives,
    deeper,
    fastest,
    keep_settings,
    known_settings,
)
from pipeline.reader import StepBytes


def settings(threads: int, *, device: int | None = None, encoding: str = "jpeg") -> RenderSettings:
    return RenderSettings(
        encoding=encoding,
        max_rows=4,
        num_threads=threads,
        depth=2,
        full=False,
        dtype=np.float32,
        device=device,
        hw_decoder_load=0.65,
    )


def choices(*found: RenderSettings, backend: str = "numpy") -> list[Choice]:
    return [Choice(backend, one) for one in found]


def told(found: list[RenderSettings]) -> list[tuple[int, float]]:
    return [(one.num_threads, one.hw_decoder_load) for one in found]


def test_a_gpu_decoder_has_its_threads_and_its_engines_share_to_choose() -> None:
    found = told(alternatives(settings(8, device=0), exact=False))
    assert found == [(n, load) for n in (8, 4) for load in (0.65, 0.0, 0.4, 0.9)]


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (settings(8), False),
        (settings(8, device=0), True),
        (settings(8, device=0, encoding="raw"), False),
    ],
)
def test_where_no_engine_decodes_the_threads_alone_are_chosen(
    given: RenderSettings, exact: bool
) -> None:
    assert told(alternatives(given, exact=exact)) == [(8, 0.65), (4, 0.65)]


def test_one_thread_leaves_nothing_to_choose() -> None:
    assert alternatives(settings(1), exact=False) == [settings(1)]


def test_a_gpu_may_be_given_twice_as_many_steps_at_a_time() -> None:
    assert [one.depth for one in deeper(settings(8, device=0))] == [2, 4]
    assert deeper(settings(8)) == [settings(8)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test, and a GPU by name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    return tmp_path / "fullfeed"


def test_what_was_fastest_is_known_on_the_same_gpu_and_at_the_same_size(folder: Path) -> None:
    given = settings(8, device=0)
    found = dataclasses.replace(given, num_threads=4, hw_decoder_load=0.9, depth=4)
    assert known_settings(given, exact=False) is None
    keep_settings(given, found, exact=False)
    assert known_settings(given, exact=False) == found
    assert known_settings(given, exact=True) is None
    for other in (
        settings(8, device=1),
        settings(6, device=0),
        dataclasses.replace(given, max_rows=5),
        dataclasses.replace(given, encoding="raw"),
        dataclasses.replace(given, full=True),
    ):
        assert known_settings(other, exact=False) is None
    (path,) = folder.iterdir()
    path.write_text(path.read_text().replace("0.9", "0.95"))  # no choice of these
    assert known_settings(given, exact=False) is None


def test_of_a_cpu_nothing_is_kept(folder: Path) -> None:
    keep_settings(settings(8), settings(4), exact=False)
    assert not folder.exists() and known_settings(settings(8), exact=False) is None


class Clock:
    """A time that only rendering moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedBackend:
    """Takes a step in the seconds said for its round, and tells its name."""

    still_reading = None

    def __init__(self, name: int, clock: Clock, seconds: Callable[[int], float]) -> None:
        self.name, self.clock, self.seconds = name, clock, seconds
        self.submitted = self.taken = 0
        self.closed = False

    def prepare(self, work: Work) -> Work:
        return work

    def submit(self, prepared: Work) -> None:
        self.submitted += 1
        assert self.submitted - self.taken <= 2  # the depth

    def take(self) -> None:
        self.clock.now += self.seconds(self.taken // 2)
        self.taken += 1

    def clear(self) -> None:
        raise AssertionError("nothing is left over")

    def close(self) -> None:
        self.closed = True


def test_the_least_median_wins_and_a_slow_first_round_or_outlier_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    seconds: dict[int, Callable[[int], float]] = {
        4: lambda round_: 0.02,
        2: lambda round_: {0: 5.0, 3: 0.5}.get(round_, 0.01),  # the fastest, but for two rounds
        1: lambda round_: 0.03 if round_ else 0.0001,
    }
    opened: list[TimedBackend] = []

    def open_one(choice: Choice) -> TimedBackend:
        threads = choice.settings.num_threads
        opened.append(TimedBackend(threads, clock, seconds[threads]))
        return opened[-1]

    settled = []
    data = StepBytes(np.zeros((1, 64), np.uint8), np.full((1, 1), 64, np.int32))
    work = Work(data, np.zeros((1, 3), np.int32), None)
    several = choices(*(settings(threads) for threads in (4, 2, 1)))
    best = fastest(several, open_one, work, lambda: settled.append(clock.now), max_seconds=2.0)
    assert best == several[1]
    assert all(one.closed and one.submitted == one.taken for one in opened)
    assert len({one.taken for one in opened}) == 1 and opened[0].taken >= 2 * (1 + 3)
    assert len(settled) == sum(one.taken for one in opened) // 2


def test_three_rounds_are_made_whatever_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    opened: list[TimedBackend] = []

    def open_one(choice: Choice) -> TimedBackend:
        opened.append(TimedBackend(choice.settings.num_threads, clock, lambda round_: 60.0))
        return opened[-1]

    data = StepBytes(np.zeros((1, 64), np.uint8), np.full((1, 1), 64, np.int32))
    work = Work(data, np.zeros((1, 3), np.int32), None)
    fastest(choices(settings(2), settings(1)), open_one, work, lambda: None)
    assert [one.taken for one in opened] == [2 * (1 + 3)] * 2


def test_each_choice_has_as_many_steps_under_way_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, most = Clock(), dict[int, int]()
    monkeypatch.setattr("time.perf_counter", clock)

    class Counting(TimedBackend):
        def submit(self, prepared: Work) -> None:
            self.submitted += 1
            under_way = self.submitted - self.taken
            most[self.name] = max(most.get(self.name, 0), under_way)

    def open_one(choice: Choice) -> TimedBackend:
        depth = choice.settings.depth
        return Counting(depth, clock, lambda round_: 1.0 / depth)

    data = StepBytes(np.zeros((1, 64), np.uint8), np.full((1, 1), 64, np.int32))
    work = Work(data, np.zeros((1, 3), np.int32), None)
    several = choices(*deeper(settings(2, device=0)))
    best = fastest(several, open_one, work, lambda: None, max_seconds=0.0)
    assert best.settings.depth == 4 and most == {2: 2, 4: 4}


def test_a_single_choice_is_not_measured() -> None:
    data = StepBytes(np.zeros((1, 64), np.uint8), np.full((1, 1), 64, np.int32))
    work = Work(data, np.zeros((1, 3), np.int32), None)

    def never(choice: Choice) -> TimedBackend:
        raise AssertionError

    only = choices(settings(2))
    assert fastest(only, never, work, lambda: None) == only[0]


def test_of_two_backends_the_faster_is_taken_whichever_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    seconds = {"dali-cpu": 0.02, "numpy": 0.01}

    def open_one(choice: Choice) -> TimedBackend:
        return TimedBackend(0, clock, lambda round_: seconds[choice.backend])

    data = StepBytes(np.zeros((1, 64), np.uint8), np.full((1, 1), 64, np.int32))
    work = Work(data, np.zeros((1, 3), np.int32), None)
    for names in (("dali-cpu", "numpy"), ("numpy", "dali-cpu")):
        several = [one for name in names for one in choices(settings(2), backend=name)]
        best = fastest(several, open_one, work, lambda: None, max_seconds=0.0)
        assert best.backend == "numpy"
