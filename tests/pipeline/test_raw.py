"""Raw steps copied and cut: in which order a GPU is told to; pixels are in test_backends.py."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.backends import RenderSettings, Work
from pipeline.copies import Event
from pipeline.raw import RawBackend
from pipeline.reader import StepBytes


class LateEvent:
    """An event that comes when somebody waits for it, and the copies with it."""

    def __init__(self, name: str, log: list[str], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.name, self._log, self._pairs = name, log, pairs

    def come(self) -> None:
        for target, source in self._pairs:
            target.copy_(source)
        self._pairs = ()

    def synchronize(self) -> None:
        self._log.append(f"host waits for {self.name}")
        self.come()


class LateCopies:
    """Copies that come as late as they may, and a log of what was asked in which order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._num_copies = self._num_marks = 0

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]], after: Event | None) -> Event:
        assert isinstance(after, LateEvent)
        event = LateEvent(f"copy {self._num_copies}", self.log, pairs)
        self._num_copies += 1
        self.log.append(f"{event.name} after {after.name}")
        return event

    def wait(self, event: Event) -> None:
        assert isinstance(event, LateEvent)
        self.log.append(f"stream waits for {event.name}")
        event.come()

    def mark(self) -> Event:
        event = LateEvent(f"use {self._num_marks}", self.log, ())
        self._num_marks += 1
        return event


def work(seed: int, count: int = 2) -> Work:
    """A raw step of white noise: uint8 (count, 196608)."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (count, 256 * 256 * 3), np.uint8)
    sizes = np.full((count, 1), data.shape[1], np.int32)
    return Work(StepBytes(data, sizes), np.full((count, 3), seed, np.int32), None)


def backend(copies: LateCopies, *, depth: int, full: bool = True) -> RawBackend:
    settings = RenderSettings(
        encoding="raw", max_rows=2, num_threads=1, depth=depth, full=full, dtype=np.uint8
    )
    return RawBackend(settings, copies)


def pixels(step: Work) -> Tensor:
    return torch.from_numpy(step.encoded.data).view(-1, 256, 256, 3)


def test_crops_are_made_after_their_copy_and_memory_reused_after_its_crops() -> None:
    copies = LateCopies()
    opened = backend(copies, depth=1)  # two slots, of use 0 and use 1
    for seed in range(3):
        step = work(seed)
        opened.submit(step)
        assert torch.equal(opened.take(), pixels(step))
    assert copies.log == [
        "copy 0 after use 0",
        "stream waits for copy 0",
        "copy 1 after use 1",
        "stream waits for copy 1",
        "host waits for copy 0",  # the draws of step 0 may still be on their way
        "copy 2 after use 2",  # step 0's crops
        "stream waits for copy 2",
    ]


def test_what_is_waited_for_is_the_copy_of_the_step_last_taken() -> None:
    copies = LateCopies()
    opened = backend(copies, depth=2)
    for seed in range(2):
        opened.submit(work(seed))
    for number in range(2):
        opened.take()
        still_reading = opened.still_reading
        assert still_reading is not None
        copies.log.clear()
        still_reading()
        assert copies.log == [f"host waits for copy {number}"]


def test_cleared_steps_are_read_no_more_and_their_memory_is_used_again() -> None:
    copies = LateCopies()
    opened = backend(copies, depth=2)
    for _ in range(3):
        steps = [work(seed) for seed in range(2)]
        for step in steps:
            opened.submit(step)
        copies.log.clear()
        opened.clear()
        assert len(copies.log) == 2 and all(line.startswith("host waits") for line in copies.log)
        for step in steps:
            step.encoded.data[:] = 0
    step = work(9)
    opened.submit(step)
    assert torch.equal(opened.take(), pixels(step))


def test_a_step_taken_is_not_overwritten_by_the_following() -> None:
    opened = backend(LateCopies(), depth=1)
    first = work(0)
    opened.submit(first)
    kept = opened.take()
    for seed in range(1, 5):
        opened.submit(work(seed))
        opened.take()
    assert torch.equal(kept, pixels(first))


def test_closing_waits_for_the_crops_that_use_the_memory() -> None:
    copies = LateCopies()
    opened = backend(copies, depth=1)
    opened.submit(work(0))
    opened.take()
    copies.log.clear()
    opened.close()
    assert sorted(copies.log) == ["host waits for use 1", "host waits for use 2"]
