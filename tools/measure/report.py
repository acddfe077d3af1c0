"""A measurement as JSON: the form that every benchmark of this project keeps."""

from collections.abc import Mapping, Sequence
from typing import Any

from tools.measure.rounds import Outcome, Pass
from tools.measure.spread import percentiles, round_ratios, rounded, spread_of


def build_report(
    outcome: Outcome,
    pairs: Sequence[tuple[str, str]],
    *,
    absent: Mapping[str, str],
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON object of a measurement.

    results: name and images_per_second (median, min, max) of each that came through; where
    measured, cpu_us_per_image, the CPU time of all that worked, and caller_us_per_image, that of
    the calling thread alone (median, min, max), anonymous_mb after the first and the last pass,
    and the least and largest of all, peak_mb (median, min, max), batch_ms, the percentiles of the
    time from batch to batch over all passes. ratios: "ours/theirs" to median, min and max of the
    ratios round by round of images per second, for each of `pairs` of which both came through.
    cpu_ratios: the same of images per second of CPU time, where that was measured. not_measured:
    name to reason. machine and settings: as given.
    """
    speeds = {
        name: [done.images_per_second for done in passes]
        for name, passes in outcome.passes.items()
    }
    per_cpu_second = {
        name: [done.num_images / done.cpu_seconds for done in passes if done.cpu_seconds]
        for name, passes in outcome.passes.items()
    }
    cpu_ratios = _ratios(pairs, {name: each for name, each in per_cpu_second.items() if each})
    return {
        "results": [
            {
                "name": name,
                "images_per_second": rounded(spread_of(speeds[name]), 1),
                **_costs(passes),
            }
            for name, passes in outcome.passes.items()
        ],
        "ratios": _ratios(pairs, speeds),
        **({"cpu_ratios": cpu_ratios} if cpu_ratios else {}),
        "machine": dict(machine),
        "settings": dict(settings),
        "not_measured": {**absent, **outcome.failed},
    }


def _ratios(
    pairs: Sequence[tuple[str, str]], speeds: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, float]]:
    """Spreads of the ratios of each pair that has speeds, one a round."""
    return {
        f"{ours}/{theirs}": rounded(spread_of(round_ratios(speeds[ours], speeds[theirs])), 4)
        for ours, theirs in pairs
        if ours in speeds and theirs in speeds
    }


def _costs(passes: Sequence[Pass]) -> dict[str, dict[str, float]]:
    """What was spent by all and by the calling thread, what was kept, as far as measured."""
    found = {}
    spent = [p.cpu_seconds / p.num_images for p in passes if p.cpu_seconds is not None]
    if spent:
        found["cpu_us_per_image"] = rounded(spread_of([1e6 * each for each in spent]), 1)
    caller = [p.caller_seconds / p.num_images for p in passes if p.caller_seconds is not None]
    if caller:
        found["caller_us_per_image"] = rounded(spread_of([1e6 * each for each in caller]), 2)
    kept = [p.anonymous_bytes / 1e6 for p in passes if p.anonymous_bytes is not None]
    if kept:
        ends = {"first": kept[0], "last": kept[-1], "min": min(kept), "max": max(kept)}
        found["anonymous_mb"] = {name: round(value, 1) for name, value in ends.items()}
    peaks = [p.peak_bytes / 1e6 for p in passes if p.peak_bytes is not None]
    if peaks:
        found["peak_mb"] = rounded(spread_of(peaks), 1)
    batches = [1000 * seconds for p in passes for seconds in p.batch_seconds]
    if batches:
        found["batch_ms"] = {name: round(ms, 3) for name, ms in percentiles(batches).items()}
    return found
