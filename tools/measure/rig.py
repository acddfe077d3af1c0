"""A run's step and what feeds it, on one rank, to be timed apart and together, by turns."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, cycle, islice, repeat
from typing import Self

from pipeline.loader import Batch
from pipeline.prefetcher import READ_AHEAD
from pipeline.waits import Waits
from tools.measure.replay import Replay
from tools.measure.rounds import Pass
from trainer.ceiling import WARM_STEPS, StepTimes, copy_of, slowest, time_steps
from trainer.config import RunConfig
from trainer.parts import plan_parts
from trainer.world import World

STEP, REAL, BESIDE = "step", "real", "step+decoding"
NUM_CACHED = 2  # batches that lie on the device: the step cannot keep one in a cache
MIN_STEPS, MAX_STEPS = 10, 5_000


class Rig:
    """Trainer, feed and cached batches of a run that is never saved; every rank has its own.

    pass_seconds: about how long a pass takes; the number of its steps, `num_steps`, is the same on
    all ranks. ValueError for what the user has to put right.
    """

    def __init__(self, config: RunConfig, world: World, pass_seconds: float) -> None:
        self.parts = parts = plan_parts(config, world)
        with ExitStack() as stack:
            self.feed = stack.enter_context(parts.train_feed())
            self.trainer = parts.trainer(parts.model(), len(self.feed))
            self.trainer.model.train()
            if self.feed.is_resident:  # as in every epoch but the first: images are kept
                for _ in self.feed:
                    pass
            self.cached = [copy_of(batch) for batch in islice(self.coming(), NUM_CACHED)]
            self.rest()
            self.step_seconds = self._warm_up()
            fitting = math.ceil(pass_seconds / self.step_seconds)
            self.num_steps = min(MAX_STEPS, max(MIN_STEPS, fitting))
            self.replay: Replay | None = None
            if not self.feed.is_resident and config.stage_dir is None:
                feed = self.feed
                rendered = feed.config.rendered_as(feed.settings, feed.backend)
                self.replay = Replay(replace(rendered, resident="none"), NUM_CACHED)
                stack.callback(self.replay.close)
            self._opened = stack.pop_all()

    @property
    def batch_size(self) -> int:
        """Of all ranks together."""
        return self.parts.preset.training.batch_size

    def coming(self) -> Iterator[Batch]:
        """What the feed delivers, epoch after epoch."""
        return chain.from_iterable(repeat(self.feed))

    def rest(self) -> None:
        """Has the feed forget what it has begun, so that nothing runs; its place stays."""
        self.feed.load_state_dict(self.feed.state_dict())

    def close(self) -> None:
        """Ends threads and frees buffers."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _warm_up(self) -> float:
        """Seconds of a step, by the slowest rank."""
        batches = repeat(self.cached[0])
        time_steps(self.trainer, islice(batches, WARM_STEPS[self.trainer.device.type]))
        times = time_steps(self.trainer, islice(batches, 2))
        return slowest(times.seconds / 2, self.trainer.layout.ranks, self.trainer.device)


class StepPass:
    """The ceiling: steps on batches that already lie on the device."""

    name = STEP

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def run_pass(self) -> Pass:
        """So many steps; one more before them does not count."""
        batches = cycle(self._rig.cached)
        time_steps(self._rig.trainer, islice(batches, 1))
        times = time_steps(self._rig.trainer, islice(batches, self._rig.num_steps))
        return _pass(self._rig, times)


class RealPass:
    """Steps on what the feed delivers, after as many as it reads ahead: what it had ready before
    the clock started would hide that it is slow."""

    name = REAL

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def run_pass(self) -> Pass:
        """So many steps, on from where the last pass ended, with what was waited for."""
        rig, batches = self._rig, self._rig.coming()
        time_steps(rig.trainer, islice(batches, rig.parts.config.prefetch + READ_AHEAD))
        before = rig.feed.waits
        times = time_steps(rig.trainer, islice(batches, rig.num_steps))
        after = vars(rig.feed.waits)
        waits = Waits(**{name: after[name] - seconds for name, seconds in vars(before).items()})
        rig.rest()
        return _pass(rig, times, waits)


class BesidePass:
    """Steps on batches that lie on the device, while the decoder works as fast as for real data.

    It decodes bytes that lie in memory, and no step waits for it: what such steps take longer
    than alone is contention, not starvation.
    """

    name = BESIDE

    def __init__(self, rig: Rig, replay: Replay) -> None:
        self._rig, self._replay = rig, replay

    def run_pass(self) -> Pass:
        """So many steps; one more before them does not count."""
        batches = self._beside()
        time_steps(self._rig.trainer, islice(batches, 1))
        times = time_steps(self._rig.trainer, islice(batches, self._rig.num_steps))
        self._replay.rest()
        return _pass(self._rig, times)

    def _beside(self) -> Iterator[Batch]:
        for batch in cycle(self._rig.cached):
            self._replay.ask()
            yield batch


def _pass(rig: Rig, times: StepTimes, waits: Waits | None = None) -> Pass:
    return Pass(
        num_images=len(times.step_seconds) * rig.batch_size,
        seconds=times.seconds,
        batch_seconds=times.step_seconds,
        issued_seconds=times.issued_seconds,
        waits=waits,
    )
