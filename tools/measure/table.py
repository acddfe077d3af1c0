"""A report as a table for people, and as JSON for programs."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.atomic import write_whole

Contest = TypeVar("Contest")


def report_table(report: Mapping[str, Any]) -> str:
    """Speeds, ratios, what was not measured and why; of an object as `build_report` makes it."""
    lines = [_row("images per second", "median", "min", "max")]
    for result in report["results"]:
        speed = result["images_per_second"]
        lines.append(_row(result["name"], *(f"{speed[key]:,.0f}" for key in speed)))
    lines += _cost_lines(report["results"])
    if report["ratios"]:
        lines += ["", _row("ratio, round by round", "median", "min", "max")]
    for name, ratio in report["ratios"].items():
        lines.append(_row(name, *(f"{ratio[key]:.2f}" for key in ratio)))
    if report.get("stages"):
        shares = ", ".join(f"{name} {share:.0%}" for name, share in report["stages"].items())
        lines += ["", f"time of one worker: {shares}"]
    if report["not_measured"]:
        lines.append("")
    for name, reason in report["not_measured"].items():
        lines.append(f"not measured: {name}: {reason}")
    return "\n".join(lines)


def _cost_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each cost the thread that called it, and what its process kept in memory."""
    lines = []
    if any("caller_us_per_image" in result for result in results):
        lines += ["", _row("caller's CPU, us per image", "median", "min", "max")]
    for result in results:
        if cost := result.get("caller_us_per_image"):
            lines.append(_row(result["name"], *(f"{cost[key]:.2f}" for key in cost)))
    if any("anonymous_mb" in result for result in results):
        lines += ["", _row("memory after a pass, MB", "first", "last", "min", "max")]
    for result in results:
        if kept := result.get("anonymous_mb"):
            lines.append(_row(result["name"], *(f"{kept[key]:,.0f}" for key in kept)))
    return lines


def _row(name: str, *values: str) -> str:
    return f"{name:<26}" + "".join(f"{value:>10}" for value in values)


def measure(
    contest_type: Callable[..., Contest],
    run: Callable[[Contest, Callable[[str], None]], Mapping[str, Any]],
    options: Mapping[str, Any],
    json_path: Path | None,
    table: Callable[[Mapping[str, Any]], str] = report_table,
) -> None:
    """Runs the contest that the options ask for and publishes its report.

    A ValueError of the options themselves is a usage error, exit code 2.
    """
    try:
        contest = contest_type(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    publish(run(contest, lambda line: click.echo(line, err=True)), json_path, table)


def publish(
    report: Mapping[str, Any],
    json_path: Path | None,
    table: Callable[[Mapping[str, Any]], str] = report_table,
) -> None:
    """Prints the table and, last, the report as one line of JSON; writes it to `json_path` too.

    Exits with 1 where nothing could be measured.
    """
    click.echo(table(report))
    text = json.dumps(report)
    click.echo(text)  # first: a path that cannot be written loses nothing then
    if json_path is not None:
        write_whole(json_path, f"{text}\n".encode())
    if not report["results"]:
        sys.exit(1)
