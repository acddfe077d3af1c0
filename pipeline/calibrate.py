"""Which backend, threads, share of a GPU's JPEG engine and steps ahead are fastest: measured."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any

import numpy as np
import torch

from pipeline.backends import Backend, RenderSettings, Work
from pipeline.cores import available_cores
from pipeline.measured import recall, remember

HW_DECODER_LOADS = (0.0, 0.4, 0.65, 0.9)  # DALI's default is 0.65
MIN_ROUNDS = 3
MAX_SECONDS = 3.0  # of rounds; opening and warming up comes to it


@dataclass(frozen=True)
class Choice:
    """A backend by its name, and what to open it with."""

    backend: str
    settings: RenderSettings


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


def deeper(settings: RenderSettings) -> list[RenderSettings]:
    """The given settings and, on a GPU, twice as many steps ahead."""
    if settings.device is None:
        return [settings]
    return [settings, dataclasses.replace(settings, depth=2 * settings.depth)]


def known_settings(settings: RenderSettings, *, exact: bool) -> RenderSettings | None:
    """What an earlier calibration from these settings found on such a machine; None where none.

    Of GPUs only: how fast a CPU's threads are depends on who else works there.
    """
    if settings.device is None:
        return None
    found = recall("loader", _circumstances(settings, exact=exact))
    choices = alternatives(settings, exact=exact)
    for choice in (deep for one in choices for deep in deeper(one)):
        if found == _told(choice):
            return choice
    return None


def keep_settings(settings: RenderSettings, found: RenderSettings, *, exact: bool) -> None:
    """Keeps what a calibration from `settings` found for `known_settings`."""
    if settings.device is not None:
        remember("loader", _circumstances(settings, exact=exact), _told(found))


def _told(settings: RenderSettings) -> list[float]:
    return [settings.num_threads, settings.hw_decoder_load, settings.depth]


def _circumstances(settings: RenderSettings, *, exact: bool) -> dict[str, Any]:
    """All that the speed of rendering depends on."""
    builds = sorted(
        f"{dist.name} {dist.version}"
        for dist in distributions()
        if (dist.name or "").startswith("nvidia-dali-cuda")
    )
    return {
        "gpu": torch.cuda.get_device_name(settings.device),
        "cores": available_cores(),
        "dali": builds,
        "exact": exact,
        "encoding": settings.encoding,
        "rows": settings.max_rows,
        "side_px": settings.side_px,
        "dtype": np.dtype(settings.dtype).name,
        "from": _told(settings),
    }


def fastest(
    choices: Sequence[Choice],
    open_one: Callable[[Choice], Backend],
    work: Work,
    settle: Callable[[], object],
    *,
    max_seconds: float = MAX_SECONDS,
) -> Choice:
    """The choice of the least median time for some steps of `work`, of interleaved rounds.

    work: real images. settle: returns when the device has done what it was given. All are open at
    once and take turns, so that what slows the machine down slows all of them down. The first
    round warms up and does not count.
    """
    if len(choices) == 1:
        return choices[0]
    num_steps = max(choice.settings.depth for choice in choices)
    with ExitStack() as stack:
        backends = [stack.enter_context(closing(open_one(choice))) for choice in choices]
        seconds: list[list[float]] = [[] for _ in choices]
        for backend, choice in zip(backends, choices, strict=True):
            _seconds_of(backend, choice.settings.depth, num_steps, work, settle)
        began = time.perf_counter()
        while len(seconds[0]) < MIN_ROUNDS or time.perf_counter() - began < max_seconds:
            for backend, choice, own in zip(backends, choices, seconds, strict=True):
                depth = choice.settings.depth
                own.append(_seconds_of(backend, depth, num_steps, work, settle))
    medians = [statistics.median(own) for own in seconds]
    return choices[medians.index(min(medians))]


def _seconds_of(
    backend: Backend, depth: int, num_steps: int, work: Work, settle: Callable[[], object]
) -> float:
    """For so many steps, `depth` of them at a time."""
    steps = [backend.prepare(work) for _ in range(num_steps)]
    began = time.perf_counter()
    for step in steps[:depth]:
        backend.submit(step)
    for number in range(num_steps):
        backend.take()
        if number + depth < num_steps:
            backend.submit(steps[number + depth])
    settle()
    return time.perf_counter() - began
