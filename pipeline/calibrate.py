"""Which threads and which share of a GPU's JPEG engine are fastest here, measured at opening."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from pipeline.backends import Backend, RenderSettings, Work

HW_DECODER_LOADS = (0.0, 0.4, 0.65, 0.9)  # DALI's default is 0.65
MIN_ROUNDS = 3
MAX_SECONDS = 3.0  # of rounds; opening and warming up comes to it


def alternatives(settings: RenderSettings, *, exact: bool) -> list[RenderSettings]:
    """What to choose from, the given settings first: half the threads, other shares of the engine.

    exact: no other share, as the engine's pixels differ from those of the GPU's kernels.
    """
    loads = [settings.hw_decoder_load]
    if settings.device is not None and settings.encoding == "jpeg" and not exact:
        loads += [load for load in HW_DECODER_LOADS if load != settings.hw_decoder_load]
    threads = [settings.num_threads]
    if settings.num_threads > 1:
        threads.append(settings.num_threads // 2)
    return [
        dataclasses.replace(settings, num_threads=number, hw_decoder_load=load)
        for number in threads
        for load in loads
    ]


def fastest(
    choices: Sequence[RenderSettings],
    open_one: Callable[[RenderSettings], Backend],
    work: Work,
    settle: Callable[[], object],
    *,
    max_seconds: float = MAX_SECONDS,
) -> RenderSettings:
    """The choice of the least median time for `depth` steps of `work`, of interleaved rounds.

    work: real images. settle: returns when the device has done what it was given. All are open at
    once and take turns, so that what slows the machine down slows all of them down. The first
    round warms up and does not count.
    """
    with ExitStack() as stack:
        backends = [stack.enter_context(closing(open_one(choice))) for choice in choices]
        seconds: list[list[float]] = [[] for _ in choices]
        for backend, choice in zip(backends, choices, strict=True):
            _seconds_of(backend, choice.depth, work, settle)
        began = time.perf_counter()
        while len(seconds[0]) < MIN_ROUNDS or time.perf_counter() - began < max_seconds:
            for backend, choice, own in zip(backends, choices, seconds, strict=True):
                own.append(_seconds_of(backend, choice.depth, work, settle))
    medians = [statistics.median(own) for own in seconds]
    return choices[medians.index(min(medians))]


def _seconds_of(
    backend: Backend, num_steps: int, work: Work, settle: Callable[[], object]
) -> float:
    steps = [backend.prepare(work) for _ in range(num_steps)]
    began = time.perf_counter()
    for step in steps:
        backend.submit(step)
    for _ in range(num_steps):
        backend.take()
    settle()
    return time.perf_counter() - began
