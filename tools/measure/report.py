"""A measurement as JSON: the form that every benchmark of this project keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tools.measure.rounds import Outcome
from tools.measure.spread import Spread, round_ratios, spread_of


def build_report(
    outcome: Outcome,
    pairs: Sequence[tuple[str, str]],
    *,
    absent: Mapping[str, str],
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON object of a measurement.

    results: name and images_per_second (median, min, max) of each that came through. ratios:
    "ours/theirs" to median, min and max of the ratios round by round, for each of `pairs` of which
    both came through. not_measured: name to reason. machine and settings: as given.
    """
    speeds = {
        name: [done.images_per_second for done in passes]
        for name, passes in outcome.passes.items()
    }
    return {
        "results": [
            {"name": name, "images_per_second": _rounded(spread_of(values), 1)}
            for name, values in speeds.items()
        ],
        "ratios": {
            f"{ours}/{theirs}": _rounded(
                spread_of(round_ratios(speeds[ours], speeds[theirs])), 4
            )
            for ours, theirs in pairs
            if ours in speeds and theirs in speeds
        },
        "machine": dict(machine),
        "settings": dict(settings),
        "not_measured": {**absent, **outcome.failed},
    }


def _rounded(spread: Spread, digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in asdict(spread).items()}
