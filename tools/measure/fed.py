"""Whether training is fed: real data against the step alone, by turns, and why it falls short."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from pipeline.waits import Waits
from tools.measure.attribution import Measured, advise, attribute, shortest
from tools.measure.contestants import NO_GPU
from tools.measure.machine import describe_machine
from tools.measure.report import build_report
from tools.measure.rig import BESIDE, REAL, STEP, BesidePass, RealPass, Rig, StepPass
from tools.measure.rounds import Contestant, Outcome, Pass, run_rounds
from tools.measure.spread import Spread, require_repeats, round_ratios, rounded, spread_of
from trainer.config import RunConfig
from trainer.world import World

ENOUGH = 0.97  # a fed ratio at which the step is taken for the limit; and asked, where none is
DISAGREEING = 1.25  # largest over least ratio of a measurement that was disturbed
TIMELINE_POINTS = 200
SUFFIX = "_wait_seconds"
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class FedContest:
    """What to measure: the step of this run, alone, and unless `alone` also on real data.

    repeats: rounds that count. pass_seconds: about, of each pass. require: the least fed ratio.
    """

    config: RunConfig
    repeats: int = 5
    pass_seconds: float = 5.0
    require: float | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        require_repeats(self.repeats)
        if not 0 < self.pass_seconds <= 600:
            raise ValueError(
                f"--seconds is {self.pass_seconds}, must be more than 0 and at most 600"
            )
        if self.require is not None and not 0 < self.require <= 1:
            raise ValueError(f"--require is {self.require}, must be more than 0 and at most 1")


def run_fed_contest(
    contest: FedContest, world: World, report: Report = lambda line: None
) -> dict[str, Any]:
    """Measures; returns the report, JSON-able, on every rank. ValueError as `Rig`.

    report: called on every rank with a line on each step.
    """
    with Rig(contest.config, world, contest.pass_seconds) as rig:
        contestants = _contestants(rig, alone=contest.alone)
        seconds = rig.num_steps * rig.step_seconds * len(contestants) * (contest.repeats + 1)
        report(
            f"{rig.num_steps} steps of {rig.batch_size:,} images a pass, "
            f"{contest.repeats + 1} rounds: about {seconds / 60:.1f} minutes"
        )
        outcome = run_rounds(contestants, contest.repeats, report)
        if outcome.failed:  # the decoder's thread, say: other ranks may wait for this one
            raise ValueError("; ".join(f"{name}: {why}" for name, why in outcome.failed.items()))
        ranks = _gathered(outcome.passes, world)
        return _report(contest, rig, ranks)


def _contestants(rig: Rig, *, alone: bool) -> list[Contestant]:
    """Real data comes last in a round: what it leaves in caches disturbs the others least."""
    contestants: list[Contestant] = [StepPass(rig)]
    if not alone:
        if rig.replay is not None:
            contestants.append(BesidePass(rig, rig.replay))
        contestants.append(RealPass(rig))
    return contestants


Passes = Mapping[str, Sequence[Pass]]


def _gathered(passes: Passes, world: World) -> list[Passes]:
    """The passes of every rank, on every rank."""
    if world.size == 1:
        return [passes]
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, passes)
    return gathered


def in_all(ranks: Sequence[Passes]) -> dict[str, list[Pass]]:
    """A pass of all ranks takes as long as its slowest; images are counted over all already.

    Batches and waits are those of the rank that waited longest for data.
    """
    whole: dict[str, list[Pass]] = {}
    for name in ranks[0]:
        for rounds in zip(*(passes[name] for passes in ranks), strict=True):
            worst = max(rounds, key=lambda done: (_waited(done), done.seconds))
            whole.setdefault(name, []).append(
                Pass(
                    num_images=worst.num_images,
                    seconds=max(done.seconds for done in rounds),
                    batch_seconds=worst.batch_seconds,
                    issued_seconds=worst.issued_seconds,
                    waits=worst.waits,
                )
            )
    return whole


def _waited(done: Pass) -> float:
    return done.waits.data_wait_seconds if done.waits else 0.0


def _report(contest: FedContest, rig: Rig, ranks: Sequence[Passes]) -> dict[str, Any]:
    """`build_report`'s form, with what is said of real data where it was measured."""
    passes, config, parts = in_all(ranks), contest.config, rig.parts
    on_gpu, raw = rig.trainer.device.type == "cuda", rig.feed.dataset.encoding == "raw"
    absent = {} if on_gpu or torch.cuda.is_available() else {"GPU": NO_GPU}
    if not contest.alone and BESIDE not in passes:
        absent[BESIDE] = "not where images are resident, or shards are staged"
    report = build_report(
        Outcome(passes=passes),
        [(REAL, STEP), (BESIDE, STEP)],
        absent=absent,
        machine=describe_machine(Path(__file__).parent, shards=config.shards),
        settings={
            "repeats": contest.repeats,
            "steps_per_pass": rig.num_steps,
            "batch_size": rig.batch_size,
            "preset": parts.preset.name,
            "width": config.width,
            "precision": parts.precision,
            "device": rig.trainer.device.type,
            "processes": parts.world.size,
            "parallel": parts.layout.mode,
            "backend": rig.feed.backend,
            "loader": rig.feed.description,
            "prefetch": config.prefetch,
            "seed": config.seed,
            "fingerprint": parts.dataset.fingerprint("train"),
        },
    )
    if contest.alone:
        return report
    return report | feeding(
        ranks,
        gpu_decodes=rig.feed.backend == "dali-gpu" and not raw,  # raw images have no decoder
        on_gpu=on_gpu,
        raw=raw,
        require=contest.require,
    )


def feeding(
    ranks: Sequence[Passes],
    *,
    gpu_decodes: bool,
    on_gpu: bool,
    require: float | None,
    raw: bool = False,
) -> dict[str, Any]:
    """What the passes of all ranks say of being fed: the JSON object's further keys.

    fed_ratio: real / step alone, round by round, of all ranks together. ranks: the same of each by
    its own clock, with its waits per step, ms. attribution: shares of the time; short: the largest
    cause, or "step" where the ratio is ENOUGH, and what was required. required, fed: what was
    asked for, and whether it was reached. timeline: images/s, step by step, of the last round.
    """
    passes = in_all(ranks)
    measured = _per_step(passes, gpu_decodes=gpu_decodes, on_gpu=on_gpu, raw=raw)
    shares = attribute(measured)
    exact = _ratio(passes)
    ratio = rounded(exact, 4)
    enough = exact.median >= max(ENOUGH, require or 0.0)
    return {
        "fed_ratio": ratio,
        "required": require,
        "fed": enough if require is None else exact.median >= require,
        "ranks": [
            {"rank": rank, "fed_ratio": rounded(_ratio(each), 4), "wait_ms": _wait_ms(each[REAL])}
            for rank, each in enumerate(ranks)
        ],
        "attribution": {name: round(share, 4) for name, share in asdict(shares).items()},
        "short": "step" if enough else shortest(shares),
        "advice": advise(measured, shares, fed=enough) + _doubt(ratio),
        "timeline": {name: _timeline(done[-1]) for name, done in passes.items()},
    }


def _ratio(passes: Passes) -> Spread:
    speeds = {name: [p.images_per_second for p in done] for name, done in passes.items()}
    return spread_of(round_ratios(speeds[REAL], speeds[STEP]))


def _doubt(ratio: Mapping[str, float]) -> str:
    """A word of caution where the rounds do not tell the same."""
    if ratio["max"] < DISAGREEING * ratio["min"]:
        return ""
    return (
        f"; but the rounds disagree ({ratio['min']:.3f}-{ratio['max']:.3f}): measure again where "
        "nobody else works, or in longer passes (--seconds 20)"
    )


def _per_step(passes: Passes, *, gpu_decodes: bool, on_gpu: bool, raw: bool) -> Measured:
    """In units of the step alone in the same round: medians over the rounds.

    So what disturbs a whole round cancels out, as in the ratio.
    """
    unit = [done.seconds / len(done.batch_seconds) for done in passes[STEP]]

    def relative(values: Iterable[float]) -> float:
        return median(round_ratios(list(values), unit))

    def seconds(name: str) -> Iterator[float]:
        return (done.seconds / len(done.batch_seconds) for done in passes[name])

    waits = [(vars(done.waits), len(done.batch_seconds)) for done in passes[REAL]]
    return Measured(
        real=relative(seconds(REAL)),
        step=1.0,
        beside=relative(seconds(BESIDE)) if BESIDE in passes else None,
        waits=Waits(
            **{name: relative(each[name] / n for each, n in waits) for name in vars(Waits())}
        ),
        gpu_decodes=gpu_decodes,
        on_gpu=on_gpu,
        raw=raw,
        issued=median((done.issued_seconds or 0.0) / done.seconds for done in passes[STEP]),
    )


def _wait_ms(passes: Sequence[Pass]) -> dict[str, float]:
    """Median over the rounds of each wait (read, decode, handover, device), ms per step."""
    waits = [(vars(p.waits), len(p.batch_seconds)) for p in passes if p.waits is not None]
    return {
        name.removesuffix(SUFFIX): round(median(1000 * each[name] / n for each, n in waits), 4)
        for name in vars(Waits())
    }


def _timeline(done: Pass) -> list[float]:
    """Images per second, step by step; of a long pass in TIMELINE_POINTS runs of steps."""
    steps = done.batch_seconds
    size, run = done.num_images / len(steps), -(-len(steps) // TIMELINE_POINTS)
    parts = [steps[first : first + run] for first in range(0, len(steps), run)]
    return [round(size * len(part) / sum(part), 1) for part in parts]
