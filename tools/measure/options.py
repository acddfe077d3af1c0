"""The options that the commands of a benchmark share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.cores import available_cores
from trainer.config import RunConfig
from trainer.options import run_options

Command = Callable[..., Any]
# What a run is told of its folder, its end and its first weights changes no step's time.
NOT_MEASURED = (
    "out", "limit_steps", "max_restarts", "tensorboard", "weight_report", "fed_ratio", "overfit",
    "init_from", "replace_head", "save_every_epochs", "save_every_minutes",
)  # fmt: skip


def shards_option(command: Command) -> Command:
    """Adds --shards to a click command."""
    option = click.option(
        "--shards", type=click.Path(path_type=Path), required=True, help="Shard folder."
    )
    return option(command)


def repeats_option(command: Command) -> Command:
    """Adds --repeats."""
    return click.option("--repeats", default=5, help="Measured rounds, at least 5.")(command)


def publishing_options(command: Command) -> Command:
    """Adds --json and --plot."""
    for option in (
        click.option(
            "--plot", "plot_path", type=click.Path(path_type=Path), help="A picture, PNG."
        ),
        click.option(
            "--json", "json_path", type=click.Path(path_type=Path), help="Write it here too."
        ),
    ):
        command = option(command)
    return command


def contest_options(command: Command) -> Command:
    """Adds the options of a measurement of loaders, but whom to measure."""
    for option in reversed(
        (
            shards_option,
            click.option(
                "--raw-shards", type=click.Path(path_type=Path), help="The same, raw; by turns."
            ),
            click.option(
                "--cold", is_flag=True, help="Drop files from the page cache before each pass."
            ),
            click.option("--threads", "num_threads", default=available_cores(), help="Of each."),
            click.option("--batch-size", default=128, help="Images."),
            repeats_option,
            click.option(
                "--images", "min_images", default=10_000, help="A pass; fewer are repeated."
            ),
            publishing_options,
        )
    ):
        command = option(command)
    return command


def step_options(*without: str) -> Callable[[Command], Command]:
    """Adds the options of a run that its steps depend on, as the training command has them.

    without: names of those that the command sets itself. A field of the run that no option sets
    is its default.
    """
    left_out = (*NOT_MEASURED, *without)
    own = click.Command("run", params=[])
    run_options(own)

    def add(command: Command) -> Command:
        kept = [each for each in own.params if each.name not in left_out]
        parameters: list[click.Parameter] = command.__dict__.setdefault("__click_params__", [])
        parameters.extend(kept)
        return command

    return add


def step_config(options: dict[str, Any]) -> RunConfig:
    """The run that options of `step_options` describe; click.UsageError where there is none."""
    if options["shards"] is None:
        raise click.UsageError("--shards DIR is missing: the folder of tools/prepare_shards.py")
    try:
        return RunConfig(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
