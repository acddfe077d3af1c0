"""The options of the training command, by group; each is a field of RunConfig."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.backends import BACKENDS
from trainer.config import DEVICES, PRECISIONS
from trainer.presets import PRESETS

Command = Callable[..., Any]


def run_options(command: Command) -> Command:
    """Adds every option of a run to a click command, in the order of its help."""
    for option in reversed([*RECIPE, *FEEDING, *MACHINE]):
        command = option(command)
    return command


RECIPE = (
    click.option(
        "--shards", type=click.Path(path_type=Path), help="Shard folder to train from."
    ),
    click.option(
        "--preset", type=click.Choice(list(PRESETS)), default="modern", help="Recipe."
    ),
    click.option(
        "--epochs", type=int, help="Passes over the training split.  [default: preset's]"
    ),
    click.option(
        "--batch-size",
        type=int,
        help="Images per step, over all GPUs; scales the learning rate.  [default: the preset's, "
        "at most the largest power of two <= 1/8 of the training images]",
    ),
    click.option(
        "--width", type=float, default=1.0, help="Factor on channels and hidden units."
    ),
    click.option(
        "--seed", type=int, default=0, help="Of weights, dropout, order and augmentation."
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Run folder.  [default: runs/PRESET-SEED]",
    ),
)
FEEDING = (
    click.option(
        "--backend",
        type=click.Choice(["auto", *BACKENDS]),
        default="auto",
        help="What decodes and augments.",
    ),
    click.option(
        "--loader-threads",
        type=int,
        help="Threads that render, of this process.  [default: cores / ranks of this host]",
    ),
    click.option(
        "--prefetch", type=int, default=3, help="Steps rendered ahead of the one trained on."
    ),
    click.option(
        "--calibrate",
        is_flag=True,
        help="Measure for some seconds which loader threads and which share of a GPU's JPEG "
        "engine are fastest.",
    ),
    click.option(
        "--exact",
        is_flag=True,
        help="Leave a GPU's JPEG engine unused, so that runs on dali-gpu are bit-equal.",
    ),
)
MACHINE = (
    click.option(
        "--device", type=click.Choice(DEVICES), default="auto", help="Where to train."
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="auto",
        help="Of the step's arithmetic; auto: the preset's on a GPU, fp32 on a CPU.",
    ),
)
