"""What is done with data sets of any size, each time in a process of its own: PyTorch's is one.

Nothing is imported here that preparation does not need, so that a planner's memory is its own.
"""

import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.order import Window, order
from pipeline.plan import Settings, plan
from tools.measure.memory import peak_bytes
from tools.measure.simulated import simulate_source

BATCH_SIZE = 64  # so small that a loader holds little beside its index and orders: 38 MB a step
NUM_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One piece of work. seconds: of the clock. cpu_seconds: of all threads.

    peak_bytes: the most memory that its process had resident until then, None where the system
    does not say.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int | None


class _Watch:
    """Measures one stretch after another."""

    def __init__(self) -> None:
        self._began, self._spent = time.perf_counter(), time.process_time()

    def lap(self) -> Stretch:
        """The stretch since the last lap."""
        began, spent = self._began, self._spent
        self._began, self._spent = time.perf_counter(), time.process_time()
        return Stretch(
            seconds=self._began - began,
            cpu_seconds=self._spent - spent,
            peak_bytes=peak_bytes(),
        )


def open_and_order(folder: Path, window: Window) -> tuple[Stretch, Stretch]:
    """Opens a loader of these shards, orders an epoch by itself, then takes some steps.

    The opening and the order; the peak of the latter is that after the steps, which hold the
    orders of two epochs.
    """
    from pipeline.loader import Loader, LoaderConfig

    watch = _Watch()
    config = LoaderConfig(
        shards=folder, batch_size=BATCH_SIZE, lighting="off", backend="numpy", window=window
    )
    with Loader(config) as loader:
        opened = watch.lap()
        sizes = [shard.samples for shard in loader.dataset.split("train").shards]
        num_rows = len(order(sizes, config.seed, 1, window))
        ordered = watch.lap()
        assert num_rows == loader.dataset.num_samples("train")
        for batch in itertools.islice(loader, NUM_STEPS):
            assert len(set(batch.ids.tolist())) == BATCH_SIZE
        after = watch.lap()
    return opened, replace(ordered, peak_bytes=after.peak_bytes)


def plan_all(num_images: int) -> Stretch:
    """Lists so many originals, plans their shards and tells each shard's task from any other."""
    watch = _Watch()
    for shard in list(plan(simulate_source(num_images), Path("out"), Settings())):
        assert shard.task().plan_hash
    return watch.lap()
