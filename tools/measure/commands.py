"""The commands that measure a stage by itself: preparing, loading, a recipe, sheer numbers."""

from pathlib import Path
from typing import Any

import click

from pipeline.backends import BACKENDS
from pipeline.messages import clear_errors
from tools.measure.contest import LoaderContest, run_loader_contest
from tools.measure.contestants import PEERS
from tools.measure.options import (
    contest_options,
    publishing_options,
    repeats_option,
    shards_option,
)
from tools.measure.preparation import PreparationContest, run_preparation_contest
from tools.measure.recipe import RecipeContest, recipe_table, run_recipe_contest
from tools.measure.scale import ScaleContest, run_scale_contest, scale_table
from tools.measure.table import Paths, measure
from trainer.config import DEVICES


@click.command()
@click.option(
    "--backend", "backends", multiple=True, default=["auto"],
    type=click.Choice(["auto", *BACKENDS]), help="Of this project's loader; repeatable.",
)  # fmt: skip
@click.option(
    "--against", "peers", multiple=True, type=click.Choice(list(PEERS)),
    help="A peer that does the same work, by turns; repeatable.",
)  # fmt: skip
@contest_options
@clear_errors
def loader(json_path: Path | None, plot_path: Path | None, **options: Any) -> None:
    """Training batches per second (crop, flip, lighting, float), the CPU time they cost the thread
    that takes them, and the memory that is kept from pass to pass: one pass is one epoch."""
    measure(LoaderContest, run_loader_contest, options, Paths(json_path, plot_path))


@click.command()
@contest_options
@clear_errors
def peers(json_path: Path | None, plot_path: Path | None, **options: Any) -> None:
    """Every backend and every peer there is, by turns, as `loader --against` measures them; those
    that cannot be measured here are listed, with the command that installs them."""
    everyone = {"backends": BACKENDS, "peers": tuple(PEERS), **options}
    measure(LoaderContest, run_loader_contest, everyone, Paths(json_path, plot_path))


@click.command()
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Photographs.")
@click.option("--num-images", "min_images", default=2_000, help="A pass; fewer are repeated.")
@repeats_option
@publishing_options
@clear_errors
def prepare(json_path: Path | None, plot_path: Path | None, **options: Any) -> None:
    """Images prepared per second, one worker and two, against a bare OpenCV loop."""
    measure(PreparationContest, run_preparation_contest, options, Paths(json_path, plot_path))


@click.command()
@shards_option
@click.option(
    "--preset", "presets", multiple=True, default=["modern"], metavar="'NAME [FIELD=VALUE ...]'",
    help="Of this project, with fields to change, as in 'paper lighting=std'; repeatable.",
)  # fmt: skip
@click.option(
    "--torchvision/--no-torchvision", default=True, help="torchvision's AlexNet beside them."
)
@click.option("--minutes", default=2.0, help="Of training, of each run.")
@click.option("--epochs", type=int, help="Of each run, in place of --minutes.")
@click.option("--seeds", default=3, help="Runs of each recipe.")
@click.option("--width", default=0.25, help="Factor on channels and hidden units.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Where to train.")
@publishing_options
@clear_errors
def recipe(json_path: Path | None, plot_path: Path | None, **options: Any) -> None:
    """Errors of presets and of torchvision's AlexNet after equal minutes or epochs.

    torchvision's at its published learning rate, and at the best of four that are tried.
    """
    paths = Paths(json_path, plot_path)
    measure(RecipeContest, run_recipe_contest, options, paths, recipe_table)


@click.command()
@click.option("--images", "num_images", default=15_000_000, help="Simulated ones.")
@repeats_option
@publishing_options
@clear_errors
def scale(json_path: Path | None, plot_path: Path | None, **options: Any) -> None:
    """Seconds and memory to open a loader, order an epoch and plan a preparation.

    Of so many images, simulated in a temporary folder (TMPDIR) of 28 bytes an image; each time in
    a fresh process.
    """
    paths = Paths(json_path, plot_path)
    measure(ScaleContest, run_scale_contest, options, paths, scale_table)
