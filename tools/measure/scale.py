"""What grows with the number of images, measured without them: opening, order, plan."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.measure.machine import describe_machine
from tools.measure.preparation import main_left_out
from tools.measure.report import build_report
from tools.measure.rounds import Outcome, Pass
from tools.measure.scale_passes import BATCH_SIZE, Stretch, open_and_order, plan_all
from tools.measure.simulated import IMAGES_PER_SHARD, NUM_CLASSES, simulate_shards
from tools.measure.spread import require_repeats, rounded, spread_of
from tools.measure.table import row

WINDOW = 16  # of the order for cold storage that is measured beside the global one
OPEN, ORDER, PLAN = "opening a loader", "a new epoch's order", "planning preparation"
WINDOWED = f"the same, --window {WINDOW}"


@dataclass(frozen=True, kw_only=True)
class ScaleContest:
    """How many images to measure, and how often."""

    num_images: int
    repeats: int

    def __post_init__(self) -> None:
        require_repeats(self.repeats)
        if self.num_images < BATCH_SIZE:
            raise ValueError(f"images must be at least {BATCH_SIZE}, not {self.num_images}")


def run_scale_contest(
    contest: ScaleContest, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measures; returns the report (`build_report`), a result of each stretch.

    To what others have, each result adds seconds and cpu_seconds (median, min, max). peak_mb is of
    the process that did it, a fresh one each time, from its start on. A first round does not
    count. Shards are simulated in a temporary folder; OSError where it has no room for them.
    """
    passes: dict[str, list[Pass]] = {}
    with tempfile.TemporaryDirectory(prefix="fullfeed-benchmark-") as folder:
        num_shards = len(simulate_shards(Path(folder), contest.num_images).split("train").shards)
        report(f"{contest.num_images:,} simulated images in {num_shards:,} shards")
        for number in range(contest.repeats + 1):
            what = f"round {number} of {contest.repeats}" if number else "warm-up"
            for name, done in _round(Path(folder), contest.num_images):
                report(f"{what}: {name}: {done.seconds:.2f} s")
                if number:
                    one = Pass(num_images=contest.num_images, **asdict(done))
                    passes.setdefault(name, []).append(one)
    result = build_report(
        Outcome(passes=passes),
        [],
        absent={},
        machine=describe_machine(Path(__file__).parent),
        settings={
            "repeats": contest.repeats,
            "images": contest.num_images,
            "classes": NUM_CLASSES,
            "images_per_shard": IMAGES_PER_SHARD,
            "batch_size": BATCH_SIZE,
        },
    )
    for each in result["results"]:
        own = passes[each["name"]]
        each["seconds"] = rounded(spread_of([one.seconds for one in own]), 3)
        spent = [one.cpu_seconds for one in own if one.cpu_seconds is not None]
        each["cpu_seconds"] = rounded(spread_of(spent), 3)
    return result


def _round(folder: Path, num_images: int) -> Iterator[tuple[str, Stretch]]:
    """Every stretch once, with its name, as it is done."""
    opened, ordered = in_fresh_process(open_and_order, folder, "all")
    yield OPEN, opened
    yield ORDER, ordered
    _, windowed = in_fresh_process(open_and_order, folder, WINDOW)
    yield WINDOWED, windowed
    yield PLAN, in_fresh_process(plan_all, num_images)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives where nothing else has taken memory yet; raises what it raises.

    ValueError where its process is ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    with main_left_out(), ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a measuring process was ended from outside, as where memory is short: ask for "
                "fewer --images"
            ) from error


def scale_table(report: Mapping[str, Any]) -> str:
    """Seconds of the clock and of the CPU, and the peak of memory, of each."""
    title = f"{report['settings']['images']:,} images"
    lines = [row(title, "seconds", "min", "max", "of CPU", "peak MB")]
    for result in report["results"]:
        seconds = [f"{result['seconds'][key]:.2f}" for key in ("median", "min", "max")]
        spent, peak = f"{result['cpu_seconds']['median']:.2f}", result.get("peak_mb")
        most = f"{peak['max']:,.0f}" if peak else "?"
        lines.append(row(result["name"], *seconds, spent, most))
    return "\n".join(lines)
