"""How fast the step itself is: on a batch that already lies on the device, again and again."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from statistics import median

import torch

from pipeline.loader import Batch
from trainer.collectives import Group
from trainer.loop import Trainer
from trainer.state import ResumableFeed

CEILING_SECONDS = 3.0
MIN_STEPS, MAX_STEPS = 5, 300
WARM_STEPS = {"cuda": 10, "cpu": 1}  # until kernels are chosen, and memory is allocated


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """An uninterrupted run of steps.

    seconds: of all, until the device was done with the last. issued_seconds: until the host had
    asked for the last: on a GPU as long as `seconds` only where the host is the limit.
    step_seconds: between the ends of neighbouring steps, measured on the device where it is a GPU.
    """

    seconds: float
    issued_seconds: float
    step_seconds: tuple[float, ...]


class StepClock:
    """Marks moments of a work: a CPU's by the clock, a GPU's by events in its stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """What was asked of the device so far belongs to the step that ends here."""
        if self._device.type != "cuda":
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)

    def seconds(self) -> tuple[float, ...]:
        """Between neighbouring marks; waits for the device."""
        settle(self._device)
        if self._events:
            pairs = zip(self._events, self._events[1:], strict=False)
            return tuple(before.elapsed_time(after) / 1000 for before, after in pairs)  # from ms
        return tuple(b - a for a, b in zip(self._times, self._times[1:], strict=False))


def settle(device: torch.device) -> None:
    """Waits until the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(trainer: Trainer, batches: Iterable[Batch]) -> StepTimes:
    """Makes a training step of each batch, and times them; every rank calls it.

    Each is made as the step that is the trainer's next now, and leaves it the next: a schedule
    goes no further, however many there are (at its end rates are 0, and layers frozen).
    """
    number = trainer.step
    clock = StepClock(trainer.device)
    settle(trainer.device)
    start = time.perf_counter()
    clock.mark()
    for batch in batches:
        trainer.train_step(batch)
        trainer.step = number
        clock.mark()
    issued = time.perf_counter() - start
    settle(trainer.device)
    return StepTimes(
        seconds=time.perf_counter() - start, issued_seconds=issued, step_seconds=clock.seconds()
    )


def measure_ceiling(trainer: Trainer, batch: Batch, seconds: float = CEILING_SECONDS) -> float:
    """Images per second of all ranks together without waiting for data; every rank calls it.

    Trains on `batch` for about so many seconds, at least MIN_STEPS steps, after some that do not
    count, and takes the median step. `trainer` is thereafter of no use for a run.
    """
    trainer.model.train()
    ranks = trainer.layout.ranks
    for _ in range(WARM_STEPS[trainer.device.type]):
        first = time_steps(trainer, [batch])
    num_steps = min(MAX_STEPS, max(MIN_STEPS, math.ceil(seconds / first.seconds)))
    num_steps = int(slowest(num_steps, ranks, trainer.device))
    times = time_steps(trainer, repeat(batch, num_steps))
    slowest_step = slowest(median(times.step_seconds), ranks, trainer.device)
    return len(batch.labels) * ranks.size / slowest_step


def slowest(value: float, ranks: Group, device: torch.device) -> float:
    """The largest value of any rank, on all of them."""
    mine = torch.tensor([value], dtype=torch.float64, device=device)
    return float(ranks.all_gather(mine, 0).max())


def first_batch(feed: ResumableFeed) -> Batch:
    """A copy of the batch that comes next, whose place in the feed stays what it is."""
    state = feed.state_dict()
    batch = copy_of(next(iter(feed)))
    feed.load_state_dict(state)
    return batch


def copy_of(batch: Batch) -> Batch:
    """In memory of its own, which no feed will write to."""
    return batch.each(torch.Tensor.clone)
