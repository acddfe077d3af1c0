"""One process against several that share a network, on the same cores, in every mode, by turns.

All of it happens in the ranks that the command starts: a mode's step in all of them, each with its
share of the cores; the step of one process in the first, with all cores, while the others wait.
So every round has each of them, and a machine that slows down for minutes slows all alike.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.cores import available_cores
from pipeline.loader import Batch, Loader
from tools.measure.machine import describe_machine
from tools.measure.report import build_report
from tools.measure.rounds import Contestant, Pass, run_rounds
from tools.measure.spread import require_repeats
from tools.measure.table import report_table, row
from trainer.ceiling import WARM_STEPS, copy_of, slowest, time_steps
from trainer.config import RunConfig
from trainer.loop import Trainer
from trainer.parallel import MODES
from trainer.parts import Parts, plan_parts
from trainer.world import World

ALONE = "one process"
NUM_CACHED = 2  # batches that lie on the device: the step cannot keep one in a cache
MIN_STEPS, MAX_STEPS = 3, 5_000
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ModesContest:
    """What to measure: the step of this run in one process, and in config.processes in each mode.

    repeats: rounds that count. pass_seconds: about, of each pass of one process. require: the
    least that a mode's speed over that of one process may be.
    """

    config: RunConfig
    repeats: int = 5
    pass_seconds: float = 5.0
    require: float | None = None

    def __post_init__(self) -> None:
        require_repeats(self.repeats)
        if not 0 < self.pass_seconds <= 600:
            raise ValueError(
                f"--seconds is {self.pass_seconds}, must be more than 0 and at most 600"
            )
        if self.require is not None and not 0 < self.require < math.inf:
            raise ValueError(f"--require is {self.require}, must be a number more than 0")
        if self.config.processes is None or self.config.processes < 2:
            raise ValueError(
                f"--processes is {self.config.processes}, must be at least 2: they are compared "
                f"with one"
            )
        if self.config.parallel != "auto":
            raise ValueError("--parallel: every mode is measured; leave it out")


def run_modes_contest(
    contest: ModesContest, world: World, report: Report = lambda line: None
) -> dict[str, Any]:
    """Measures; returns the report, JSON-able, on every rank. ValueError as `plan_parts`.

    Beside the form of every benchmark: sent_bytes, by a rank in a step, of each mode; required and
    enough: what was asked for, and whether the median ratio of every mode reaches it. report:
    called on every rank with a line on each step.
    """
    cores = available_cores()
    alone = _Alone(contest, world, cores)
    shared, absent = _in_modes(contest, world, alone.num_steps, max(1, cores // world.size))
    contestants: list[Contestant] = [alone, *shared]
    outcome = run_rounds(contestants, contest.repeats, report)
    assert not outcome.failed  # steps raise no PassError
    parts = alone.parts
    found = build_report(
        outcome,
        [(mode, ALONE) for mode in MODES],
        absent=absent,
        machine=describe_machine(Path(__file__).parent, shards=contest.config.shards),
        settings={
            "repeats": contest.repeats,
            "steps_per_pass": alone.num_steps,
            "batch_size": parts.preset.training.batch_size,
            "preset": parts.preset.name,
            "width": contest.config.width,
            "precision": parts.precision,
            "wire": contest.config.wire,
            "device": world.device.type,
            "processes": world.size,
            "cores": cores,
            "seed": contest.config.seed,
            "fingerprint": parts.dataset.fingerprint("train"),
        },
    )
    required = contest.require
    return found | {
        "sent_bytes": {each.name: each.sent_bytes for each in shared},
        "required": required,
        "enough": required is None or all(
            ratio["median"] >= required for ratio in found["ratios"].values()
        ),
    }  # fmt: skip


def modes_table(report: Mapping[str, Any]) -> str:
    """Speeds, ratios, what each mode sends, and whether what was required is reached."""
    lines = [report_table(report), "", row("sent by each in a step, MB")]
    lines += [row(name, f"{sent / 1e6:,.2f}") for name, sent in report["sent_bytes"].items()]
    if report["required"] is not None:
        reached = "reached" if report["enough"] else "not reached"
        lines += ["", f"required of every mode: {report['required']:g}, {reached}"]
    return "\n".join(lines)


class _Alone:
    """The step of one process: the first rank's, with all cores, while the others wait for it."""

    name = ALONE

    def __init__(self, contest: ModesContest, world: World, num_threads: int) -> None:
        own = World(device=world.device)
        self.parts = plan_parts(replace(contest.config, processes=1), own)
        self._world = world
        self._steps: _Steps | None = None
        num_steps = 0
        if world.is_first:
            self._steps = _Steps(self.parts, _batches(self.parts), num_threads)
            fitting = round(contest.pass_seconds / self._steps.warm_up())
            num_steps = min(MAX_STEPS, max(MIN_STEPS, fitting))
        self.num_steps = int(slowest(num_steps, world.ranks, world.device))

    def run_pass(self) -> Pass:
        """So many steps, told to all ranks; one more before them does not count."""
        done = [self._steps.run(self.num_steps) if self._steps else None]
        dist.broadcast_object_list(done, src=0)
        (told,) = done
        assert told is not None
        return told


class _Shared:
    """The step of all ranks together, in one mode."""

    def __init__(self, parts: Parts, batches: list[Batch], num_steps: int, threads: int) -> None:
        self.name = parts.layout.mode
        self._world, self._num_steps = parts.world, num_steps
        self._steps = _Steps(parts, batches, threads)
        self._steps.warm_up()
        before = parts.layout.bytes_sent
        self._steps.run(1)
        self.sent_bytes = (parts.layout.bytes_sent - before) // 2  # one does not count, one does

    def run_pass(self) -> Pass:
        """So many steps, as long as the slowest rank took."""
        done = self._steps.run(self._num_steps)
        seconds = slowest(done.seconds, self._world.ranks, self._world.device)
        return replace(done, seconds=seconds)


class _Steps:
    """A trainer and the batches it is timed on, with so many threads."""

    def __init__(self, parts: Parts, batches: list[Batch], num_threads: int) -> None:
        self._batches, self._num_threads = batches, num_threads
        self._batch_size = parts.preset.training.batch_size
        self._trainer: Trainer = parts.trainer(parts.model(), steps_per_epoch=1000)
        self._trainer.model.train()

    def warm_up(self) -> float:
        """Seconds of a step, after some that are not like the others."""
        self.run(WARM_STEPS[self._trainer.device.type])
        return self.run(1).seconds

    def run(self, num_steps: int) -> Pass:
        """So many steps; one more before them does not count."""
        torch.set_num_threads(self._num_threads)
        batches = cycle(self._batches)
        time_steps(self._trainer, islice(batches, 1))
        times = time_steps(self._trainer, islice(batches, num_steps))
        return Pass(
            num_images=num_steps * self._batch_size,
            seconds=times.seconds,
            batch_seconds=times.step_seconds,
        )


def _in_modes(
    contest: ModesContest, world: World, num_steps: int, threads: int
) -> tuple[list[_Shared], dict[str, str]]:
    """Each mode that this network can be shared out in; why not, for the others."""
    shared: list[_Shared] = []
    absent: dict[str, str] = {}
    for mode in MODES:
        try:
            parts = plan_parts(replace(contest.config, parallel=mode), world)
        except ValueError as error:
            absent[mode] = str(error)
            continue
        shared.append(_Shared(parts, _batches(parts), num_steps, threads))
    if not shared:
        raise ValueError("; ".join(absent.values()))
    return shared, absent


def _batches(parts: Parts) -> list[Batch]:
    """This rank's part of the first ones, on its device, in the form that its mode trains on."""
    with Loader(parts.loader_config("train", training=True)) as loader:
        return [copy_of(batch) for batch in islice(loader, NUM_CACHED)]
