#!/usr/bin/env python3
"""Trains AlexNet from a folder of shards, and takes up a run that was stopped.

    trainer/run.py --shards shards/                       the modern recipe, 90 epochs
    trainer/run.py --shards shards/ --epochs 20 --width 0.25       a small network, on a CPU
    trainer/run.py --show-preset paper                    every hyper-parameter
"""

import sys
from typing import Any

import click

from pipeline.messages import clear_errors
from trainer.config import RunConfig
from trainer.model import summary
from trainer.options import run_options
from trainer.presets import PRESETS, find_preset
from trainer.session import Session

PREEMPTED = 75
SUMMARY_CLASSES = 1000


@click.command(context_settings={"show_default": True})
@run_options
@click.option("--summary", "show_summary", is_flag=True, help="Print the layers and stop.")
@click.option("--show-preset", type=click.Choice(list(PRESETS)), help="Print a recipe and stop.")
@clear_errors
def main(show_summary: bool, show_preset: str | None, **options: Any) -> None:
    """Train AlexNet from a folder of shards; started again, it resumes."""
    if show_preset:
        click.echo(find_preset(show_preset).show())
        return
    if show_summary:
        click.echo(summary(find_preset(options["preset"]), SUMMARY_CLASSES, options["width"]))
        return
    if options["shards"] is None:
        raise click.UsageError("--shards DIR is missing: the folder of tools/prepare_shards.py")
    with Session(RunConfig(**options)) as session:
        if not session.run():
            sys.exit(PREEMPTED)


if __name__ == "__main__":
    main()
