"""A report as a table for people."""

from collections.abc import Mapping
from typing import Any


def report_table(report: Mapping[str, Any]) -> str:
    """Speeds, ratios, what was not measured and why; of an object as `build_report` makes it."""
    lines = [_row("images per second", "median", "min", "max")]
    for result in report["results"]:
        speed = result["images_per_second"]
        lines.append(_row(result["name"], *(f"{speed[key]:,.0f}" for key in speed)))
    if report["ratios"]:
        lines += ["", _row("ratio, round by round", "median", "min", "max")]
    for name, ratio in report["ratios"].items():
        lines.append(_row(name, *(f"{ratio[key]:.2f}" for key in ratio)))
    if report["not_measured"]:
        lines.append("")
    for name, reason in report["not_measured"].items():
        lines.append(f"not measured: {name}: {reason}")
    return "\n".join(lines)


def _row(name: str, *values: str) -> str:
    return f"{name:<26}" + "".join(f"{value:>10}" for value in values)
