"""A report as a table for people, as JSON for programs, and as a picture."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.atomic import require_place, write_whole
from tools.measure.plots import images_text, plot_report, require_matplotlib

Contest = TypeVar("Contest")
Table = Callable[[Mapping[str, Any]], str]
NAME_CHARACTERS = 26
UNFINISHED = "nothing was measured to the end, and nothing is kept"


def report_table(report: Mapping[str, Any]) -> str:
    """Speeds, costs, ratios, what differs, what was not measured and why; of an object of
    `build_report`."""
    lines = [row("images per second", "median", "min", "max")]
    for result in report["results"]:
        speed = result["images_per_second"]
        lines.append(row(result["name"], *(images_text(speed[key]) for key in speed)))
    lines += _cost_lines(report["results"])
    kinds = {"ratios": "ratio, round by round", "cpu_ratios": "the same of CPU time"}
    for kind, title in kinds.items():
        if ratios := report.get(kind):
            width = max(NAME_CHARACTERS, *(len(name) + 1 for name in ratios))
            lines += ["", row(title, "median", "min", "max", width=width)]
            lines += [
                row(name, *(f"{r[key]:.2f}" for key in r), width=width)
                for name, r in ratios.items()
            ]
    if report.get("stages"):
        shares = ", ".join(f"{name} {share:.0%}" for name, share in report["stages"].items())
        lines += ["", f"time of one worker: {shares}"]
    lines += _difference_lines(report.get("differs", {}))
    if report["not_measured"]:
        lines.append("")
    for name, reason in report["not_measured"].items():
        lines.append(f"not measured: {name}: {reason}")
    return "\n".join(lines)


def _difference_lines(differs: Mapping[str, str]) -> list[str]:
    """Of contestants that do the same work: what of it differs, and whose does not."""
    if not differs:
        return []
    alike = ", ".join(name for name, told in differs.items() if not told)
    lines = [f"differs: {name}: {told}" for name, told in differs.items() if told]
    if alike:
        lines.append(f"pixels of the reference bit for bit, each image once a pass: {alike}")
    return ["", *lines]


def _cost_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """How evenly batches came, what each cost the thread that called it, what memory was kept."""
    lines = []
    if any("batch_ms" in result for result in results):
        lines += ["", row("ms from batch to batch", "p50", "p90", "p99", "max")]
    for result in results:
        if steps := result.get("batch_ms"):
            lines.append(row(result["name"], *(f"{steps[key]:,.1f}" for key in steps)))
    if any("cpu_us_per_image" in result for result in results):
        lines += ["", row("CPU time of all, us/image", "median", "min", "max")]
    for result in results:
        if cost := result.get("cpu_us_per_image"):
            lines.append(row(result["name"], *(f"{cost[key]:,.0f}" for key in cost)))
    if any("caller_us_per_image" in result for result in results):
        lines += ["", row("caller's CPU, us per image", "median", "min", "max")]
    for result in results:
        if cost := result.get("caller_us_per_image"):
            lines.append(row(result["name"], *(f"{cost[key]:.2f}" for key in cost)))
    if any("anonymous_mb" in result for result in results):
        lines += ["", row("memory after a pass, MB", "first", "last", "min", "max")]
    for result in results:
        if kept := result.get("anonymous_mb"):
            lines.append(row(result["name"], *(f"{kept[key]:,.0f}" for key in kept)))
    return lines


def row(name: str, *values: str, width: int = NAME_CHARACTERS) -> str:
    """A line of a table: what it is of, in `width` characters, and columns of ten."""
    return f"{name:<{width}}" + "".join(f"{value:>10}" for value in values)


@dataclass(frozen=True)
class Paths:
    """Files that a report goes to, beside the terminal."""

    json: Path | None = None
    plot: Path | None = None

    def check(self) -> None:
        """ValueError, before anything is measured, where no file or picture could be made."""
        if self.json is not None:
            require_place(self.json, "--json")
        if self.plot is not None:
            require_place(self.plot, "--plot")
            if self.plot.suffix.lower() != ".png":
                raise ValueError(f"--plot: a PNG file is drawn; name it {self.plot.stem}.png")
            require_matplotlib()


def measure(
    contest_type: Callable[..., Contest],
    run: Callable[[Contest, Callable[[str], None]], Mapping[str, Any]],
    options: Mapping[str, Any],
    paths: Paths,
    table: Table = report_table,
) -> None:
    """Runs the contest that the options ask for and publishes its report.

    A ValueError of the options themselves is a usage error, exit code 2. An interrupt says that
    nothing is kept.
    """
    paths.check()
    try:
        contest = contest_type(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        report = run(contest, lambda line: click.echo(line, err=True))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(UNFINISHED) from None
    publish(report, paths, table)


def publish(report: Mapping[str, Any], paths: Paths, table: Table = report_table) -> None:
    """Prints the table and, last, the report as one line of JSON; writes JSON and picture.

    Exits with 1 where nothing could be measured.
    """
    click.echo(table(report))
    text = json.dumps(report)
    click.echo(text)  # first: a path that cannot be written loses nothing then
    if paths.json is not None:
        write_whole(paths.json, f"{text}\n".encode())
    if not report["results"]:
        sys.exit(1)
    if paths.plot is not None:
        write_whole(paths.plot, plot_report(report))
