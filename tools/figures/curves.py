"""How runs learned and how they were fed: their charts over the epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tools.figures.chart import Chart, Line, Mark, Point
from tools.figures.run_record import RunRecord, number, series

DROP = 1.5  # a rate that falls by this factor between two epochs was dropped, not eased
CAUSES = (
    ("read_wait_seconds", "for their bytes"),
    ("decode_wait_seconds", "for their pixels"),
    ("handover_wait_seconds", "while they changed hands"),
    ("device_wait_seconds", "the GPU, for its input"),
)
FED_TARGET = 0.97


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What a run waited for over all of its epochs, in seconds and as a share of training."""

    cause: str
    seconds: float
    share: float  # 0..1


def learning_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Loss, top-1 and top-5 error, learning rate."""
    marks = [mark for i, run in enumerate(runs) for mark in _marks(run, _colour(i, runs))]
    both = [("train_loss", "train", True), ("val_loss", "val", False)]
    errors = [("top5_error", "top-5", True), ("top1_error", "top-1", False)]
    charts = [
        Chart(title="Loss", unit="nats", lines=_lines(runs, both), marks=marks),
        Chart(title="Validation error", unit="%", lines=_lines(runs, errors), marks=marks),
        Chart(
            title="Learning rate", unit="", lines=_lines(runs, [("learning_rate", "", False)]),
            marks=marks, log=True,
        ),
    ]  # fmt: skip
    return [chart for chart in charts if chart.has_points]


def feeding_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Images per second, the share of time spent waiting, the fed ratio where it was measured."""
    waits = [
        Line(name=run.name, points=_wait_shares(run), colour=i) for i, run in enumerate(runs)
    ]
    speed = _lines(runs, [("images_per_second", "", False)])
    fed = _lines(runs, [("fed_ratio", "", False)])
    charts = [
        Chart(title="Speed of training", unit="images/s", lines=speed),
        Chart(title="Waited for data", unit="%", lines=waits),
        Chart(title="Fed ratio", unit="%", lines=fed, target=FED_TARGET),
    ]
    return [chart for chart in charts if chart.has_points]


def waiting(run: RunRecord) -> list[Waiting]:
    """What a run waited for, the longest first; nothing where its reports do not tell."""
    seconds = _sum(run, "train_seconds")
    found = [
        Waiting(cause=cause, seconds=_sum(run, key), share=_sum(run, key) / seconds)
        for key, cause in CAUSES
        if seconds > 0
    ]
    return sorted((one for one in found if one.seconds), key=lambda one: -one.seconds)


def events(run: RunRecord) -> list[tuple[float, str]]:
    """What changed after how many epochs: drops of the rate, the end of lighting, frozen layers.

    Only what has come by the last report.
    """
    found = [(epoch, f"rate ÷{factor:.3g}") for epoch, factor in _drops(run)]
    augmentation = run.setting("preset.augmentation") or {}
    off = augmentation.get("lighting_off_epoch")
    if off and augmentation.get("lighting") != "off":
        found.append((float(off), "lighting off"))
    layers = {  # of several for a layer at an epoch the last one holds
        (float(epoch), layer): f"{layer} rate ×{factor:.3g}" if factor else f"{layer} frozen"
        for epoch, layer, factor in run.setting("preset.training.layer_rates") or []
        if epoch > 0
    }
    found += [(epoch, text) for (epoch, _), text in layers.items()]
    last = max((float(report["epoch"]) for report in run.reports), default=0.0)
    return sorted((one for one in found if one[0] <= last), key=lambda one: one[0])


def _drops(run: RunRecord) -> list[tuple[float, float]]:
    """(epochs finished before, factor) of each drop that the reports show."""
    if run.setting("preset.training.schedule") not in ("steps", "plateau"):
        return []
    rates = [(x, rate) for x, rate in series(run.reports, "learning_rate") if rate > 0]
    return [
        (x, before / rate)
        for (x, before), (_, rate) in pairwise(rates)
        if before / rate >= DROP
    ]


def _marks(run: RunRecord, colour: int | None) -> list[Mark]:
    return [Mark(x=x, text=text, colour=colour) for x, text in events(run)]


def _colour(position: int, runs: Sequence[RunRecord]) -> int | None:
    return position if len(runs) > 1 else None


def _lines(runs: Sequence[RunRecord], keys: Sequence[tuple[str, str, bool]]) -> list[Line]:
    alone = len(runs) == 1
    return [
        Line(
            name=f"{run.name} {label}".strip() if not alone else label or run.name,
            points=series(run.reports, key),
            colour=i,
            light=light,
            label=label if alone else "",
        )
        for i, run in enumerate(runs)
        for key, label, light in keys
    ]


def _wait_shares(run: RunRecord) -> list[Point]:
    points = []
    for report in run.reports:
        waited, seconds = number(report, "data_wait_seconds"), number(report, "train_seconds")
        if waited is not None and seconds is not None and seconds > 0:
            points.append((float(report["epoch"]), waited / seconds))
    return points


def _sum(run: RunRecord, key: str) -> float:
    return sum(value for _, value in series(run.reports, key) if math.isfinite(value))
