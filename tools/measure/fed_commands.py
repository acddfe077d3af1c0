"""The commands that measure a training step: alone, fed, and what is to be expected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.locations import Location
from pipeline.messages import clear_errors
from tools.measure.fed import FedContest, run_fed_contest
from tools.measure.fed_table import fed_table
from tools.measure.options import (
    publishing_options,
    repeats_option,
    step_config,
    step_options,
)
from tools.measure.preflight import Preflight, run_preflight
from tools.measure.preflight_table import preflight_table
from tools.measure.ranks import in_every_rank
from tools.measure.table import Paths, Table, measure, publish, report_table
from trainer.world import World

SECONDS = click.option(
    "--seconds", "pass_seconds", default=5.0, help="A pass, about; at least ten steps."
)


@click.command()
@step_options()
@repeats_option
@SECONDS
@publishing_options
@clear_errors
def trainer(
    repeats: int,
    pass_seconds: float,
    json_path: Path | None,
    plot_path: Path | None,
    **options: Any,
) -> None:
    """The ceiling: images per second of a training step on batches that already lie on the device,
    with the options of trainer/run.py; in all of its processes."""
    contest = _contest(options, repeats=repeats, pass_seconds=pass_seconds, alone=True)
    _measure(contest, Paths(json_path, plot_path), report_table)


@click.command()
@step_options()
@click.option(
    "--require",
    type=float,
    metavar="RATIO",
    help="Exit code 1 where the fed ratio stays below, such as 0.97.  [default: nothing]",
)
@repeats_option
@SECONDS
@publishing_options
@clear_errors
def fed(
    require: float | None,
    repeats: int,
    pass_seconds: float,
    json_path: Path | None,
    plot_path: Path | None,
    **options: Any,
) -> None:
    """Whether training waits for its data: its speed over that of the step alone, by turns, with
    the options of trainer/run.py; of each process and in all. Where it falls short: why, which
    resource is short, and which flag would help."""
    asked = {"repeats": repeats, "pass_seconds": pass_seconds, "require": require}
    contest = _contest(options, **asked)
    _measure(contest, Paths(json_path, plot_path), fed_table)


@click.command()
@click.argument("shards", type=Location())
@step_options(with_shards=False)
@click.option("--seconds", default=30.0, help="In all, about.")
@publishing_options
@clear_errors
def preflight(
    seconds: float, json_path: Path | None, plot_path: Path | None, **options: Any
) -> None:
    """What a training from SHARDS is to expect here, in half a minute: images/s, hours, whether
    1, 2 and 4 GPUs would be fed, memory, and what is short; with the options of
    trainer/run.py."""
    paths = Paths(json_path, plot_path)
    asked = {"config": step_config(options), "seconds": seconds}
    measure(Preflight, run_preflight, asked, paths, preflight_table)


def _contest(options: dict[str, Any], **asked: Any) -> FedContest:
    try:
        return FedContest(config=step_config(options), **asked)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _measure(contest: FedContest, paths: Paths, table: Table) -> None:
    """Measures in every rank; the first tells, and all end with exit code 1 where it falls short
    of what was required."""
    paths.check()

    def in_a_rank(world: World) -> dict[str, Any]:
        told: Callable[[str], None] = _tell if world.is_first else _ignore
        return run_fed_contest(contest, world, told)

    def tell(report: dict[str, Any]) -> bool:
        publish(report, paths, table)
        return contest.require is None or bool(report["fed"])

    in_every_rank(contest.config, in_a_rank, tell)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _ignore(line: str) -> None:
    """Another rank tells."""
