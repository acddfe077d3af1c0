#!/usr/bin/env python3
"""Trains AlexNet from a folder of shards, and takes up a run that was stopped.

    trainer/run.py --shards shards/                       the modern recipe, on every GPU here
    trainer/run.py --shards shards/ --epochs 20 --width 0.25       a small network, on a CPU
    trainer/run.py --show-preset kriz2012                 every hyper-parameter, its source
    trainer/run.py --preset paper --set conv6=256 --summary        layers of a variant
"""

import sys
from typing import Any

import click

from pipeline.messages import clear_errors
from trainer.config import RunConfig, asked_preset
from trainer.options import run_options
from trainer.presets import PRESETS, describe_preset
from trainer.rank import ended_at_once, run
from trainer.summary import summary

SUMMARY_CLASSES = 1000


@click.command(context_settings={"show_default": True})
@run_options
@click.option("--summary", "show_summary", is_flag=True, help="Print the layers and stop.")
@click.option(
    "--show-preset",
    type=click.Choice(list(PRESETS)),
    help="Print a preset with its sources, changed by --config and --set, and stop.",
)
@ended_at_once()
@clear_errors
def main(show_summary: bool, show_preset: str | None, **options: Any) -> None:
    """Train AlexNet from a folder of shards; started again, it resumes."""
    options["preset"] = show_preset or options["preset"]
    if show_preset or show_summary:
        preset = asked_preset(RunConfig(**options))
        network = (preset, SUMMARY_CLASSES, options["width"])
        click.echo(describe_preset(preset) if show_preset else summary(*network))
        return
    if options["shards"] is None:
        raise click.UsageError("--shards DIR is missing: the folder of tools/prepare_shards.py")
    run(RunConfig(**options), [sys.executable, __file__, *sys.argv[1:]])


if __name__ == "__main__":
    main()
