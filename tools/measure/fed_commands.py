"""The commands that measure a training step: alone, fed, and what is to be expected."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.locations import Location
from pipeline.manifest import open_dataset
from pipeline.messages import clear_errors
from tools.measure.fed import FedContest, run_fed_contest
from tools.measure.fed_table import fed_table
from tools.measure.modes import ModesContest, modes_table, run_modes_contest
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
from trainer.parallel import NUM_COLUMNS
from trainer.rank import ended_at_once, find_processes
from trainer.world import World

SECONDS = click.option(
    "--seconds", "pass_seconds", default=5.0, help="A pass, about; at least ten steps."
)
MODES_SECONDS = click.option(
    "--seconds", "pass_seconds", default=5.0, help="A pass, about; at least three steps."
)
Contest = TypeVar("Contest", FedContest, ModesContest)


@click.command()
@step_options()
@repeats_option
@SECONDS
@publishing_options
@ended_at_once()
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
    contest = _asked(
        FedContest, config=step_config(options), repeats=repeats, pass_seconds=pass_seconds,
        alone=True,
    )  # fmt: skip
    _measure(contest, run_fed_contest, Paths(json_path, plot_path), report_table, "fed")


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
@ended_at_once()
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
    contest = _asked(
        FedContest, config=step_config(options), repeats=repeats, pass_seconds=pass_seconds,
        require=require,
    )  # fmt: skip
    _measure(contest, run_fed_contest, Paths(json_path, plot_path), fed_table, "fed")


@click.command()
@click.argument("shards", type=Location())
@step_options("shards")
@click.option("--seconds", default=30.0, help="In all, about.")
@publishing_options
@ended_at_once()
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


@click.command()
@step_options("parallel")
@click.option(
    "--require",
    type=float,
    metavar="RATIO",
    help="Exit code 1 where a mode's speed over that of one process stays below, such as 0.85.  "
    "[default: nothing]",
)
@repeats_option
@MODES_SECONDS
@publishing_options
@ended_at_once()
@clear_errors
def modes(
    require: float | None,
    repeats: int,
    pass_seconds: float,
    json_path: Path | None,
    plot_path: Path | None,
    **options: Any,
) -> None:
    """The step of one process against that of several (two, or one per GPU) in every mode of
    --parallel, by turns: on CPUs with the same cores in all, each process with its share."""
    config = step_config(options)
    several = config.processes or max(NUM_COLUMNS, find_processes(config))
    contest = _asked(
        ModesContest, config=replace(config, processes=several), repeats=repeats,
        pass_seconds=pass_seconds, require=require,
    )  # fmt: skip
    _measure(contest, run_modes_contest, Paths(json_path, plot_path), modes_table, "enough")


def _asked(contest_type: Callable[..., Contest], **options: Any) -> Contest:
    try:
        return contest_type(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _measure(
    contest: Contest,
    run: Callable[[Contest, World, Callable[[str], None]], dict[str, Any]],
    paths: Paths,
    table: Table,
    verdict: str,
) -> None:
    """Measures in every rank; the first tells, and all end with exit code 1 where the report says
    under `verdict` that it falls short of what was required."""
    paths.check()
    open_dataset(contest.config.shards).require_images("train")  # before processes are started

    def in_a_rank(world: World) -> dict[str, Any]:
        return run(contest, world, _tell if world.is_first else _ignore)

    def tell(report: dict[str, Any]) -> bool:
        publish(report, paths, table)
        return contest.require is None or bool(report[verdict])

    in_every_rank(contest.config, in_a_rank, tell)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _ignore(line: str) -> None:
    """Another rank tells."""
