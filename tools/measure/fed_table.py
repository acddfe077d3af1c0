"""A report on being fed, for people."""

from collections.abc import Mapping
from typing import Any

from tools.measure.table import report_table, row

CAUSES = {
    "step": "the step itself",
    "storage_read": "waiting for bytes from storage",
    "host_decode": "waiting for pixels from the CPU",
    "device_decode": "waiting for pixels from the GPU",
    "contention": "the step slowed by decoding beside it",
    "hand_over": "handing over",
    "python": "Python, and all else",
}


def fed_table(report: Mapping[str, Any]) -> str:
    """Speeds, the ratio in all and rank by rank, where the time went, what is short."""
    lines = [report_table(report), "", "time of a step with real data"]
    lines += [
        f"  {told:<42}{report['attribution'][name]:>8.1%}" for name, told in CAUSES.items()
    ]
    lines += ["", row("fed ratio", "median", "min", "max", "waits, ms")]
    for rank in report["ranks"] if len(report["ranks"]) > 1 else []:
        lines.append(row(f"rank {rank['rank']}", *_spread(rank["fed_ratio"]), _waited(rank)))
    longest = max(report["ranks"], key=lambda rank: sum(rank["wait_ms"].values()))
    lines.append(row("in all", *_spread(report["fed_ratio"]), _waited(longest)))
    lines += ["", report["advice"]]
    if report["required"] is not None:
        reached = "reached" if report["fed"] else "not reached"
        lines.append(f"required: {report['required']:g}, {reached}")
    return "\n".join(lines)


def _spread(spread: Mapping[str, float]) -> list[str]:
    return [f"{spread[key]:.3f}" for key in ("median", "min", "max")]


def _waited(rank: Mapping[str, Any]) -> str:
    """Of a step."""
    return f"{sum(rank['wait_ms'].values()):.2f}"
