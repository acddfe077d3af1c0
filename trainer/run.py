#!/usr/bin/env python3
"""Trains AlexNet from a folder of shards, and takes up a run that was stopped.

    trainer/run.py --shards shards/                       the modern recipe, 90 epochs
    trainer/run.py --shards shards/ --epochs 20 --width 0.25       a small network, on a CPU
    trainer/run.py --show-preset paper                    every hyper-parameter
"""

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.backends import BACKENDS
from pipeline.messages import clear_errors
from trainer.config import DEVICES, PRECISIONS, RunConfig
from trainer.model import summary
from trainer.presets import PRESETS, find_preset
from trainer.session import Session

PREEMPTED = 75
SUMMARY_CLASSES = 1000


@click.command(context_settings={"show_default": True})
@click.option("--shards", type=click.Path(path_type=Path), help="Shard folder to train from.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="modern", help="Recipe.")
@click.option("--epochs", type=int, help="Passes over the training split.  [default: preset's]")
@click.option(
    "--batch-size",
    type=int,
    help="Images per step, over all GPUs; scales the learning rate.  [default: the preset's, "
    "at most the largest power of two <= 1/8 of the training images]",
)
@click.option("--width", type=float, default=1.0, help="Factor on channels and hidden units.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Where to train.")
@click.option(
    "--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", help="Of the loader."
)
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="auto", help="auto: fp32 on a CPU."
)
@click.option("--seed", type=int, default=0, help="Of weights, dropout, order and augmentation.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/PRESET-SEED]"
)
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
