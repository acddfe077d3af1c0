#!/usr/bin/env python3
"""How fast each stage is, against what else could do its work.

    tools/benchmark.py loader --shards shards/ --against torch --against stock-dali
    tools/benchmark.py prepare --images /path/to/photographs
    tools/benchmark.py recipe --shards shards/ --minutes 2 --seeds 3 --width 0.25
"""

from pathlib import Path
from typing import Any

import click

from pipeline.backends import BACKENDS
from pipeline.cores import available_cores
from pipeline.messages import clear_errors
from tools.measure.contest import LoaderContest, run_loader_contest
from tools.measure.contestants import PEERS
from tools.measure.preparation import PreparationContest, run_preparation_contest
from tools.measure.recipe import RecipeContest, recipe_table, run_recipe_contest
from tools.measure.table import measure
from trainer.config import DEVICES


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Measures; prints a table for people and, as last line, one JSON object for programs."""


@main.command()
@click.option("--shards", type=click.Path(path_type=Path), required=True, help="Shard folder.")
@click.option(
    "--backend", "backends", multiple=True, default=["auto"],
    type=click.Choice(["auto", *BACKENDS]), help="Of this project's loader; repeatable.",
)  # fmt: skip
@click.option(
    "--against", "peers", multiple=True, type=click.Choice(list(PEERS)),
    help="A peer that does the same work, by turns; repeatable.",
)  # fmt: skip
@click.option("--raw-shards", type=click.Path(path_type=Path), help="The same, raw; by turns.")
@click.option("--cold", is_flag=True, help="Drop files from the page cache before each pass.")
@click.option("--threads", "num_threads", default=available_cores(), help="Of each.")
@click.option("--batch-size", default=128, help="Images.")
@click.option("--repeats", default=5, help="Measured rounds, at least 5.")
@click.option("--images", "min_images", default=10_000, help="A pass; fewer are repeated.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write it here too.")
@clear_errors
def loader(json_path: Path | None, **options: Any) -> None:
    """Training batches per second (crop, flip, lighting, float), the CPU time they cost the thread
    that takes them, and the memory that is kept from pass to pass: one pass is one epoch."""
    measure(LoaderContest, run_loader_contest, options, json_path)


@main.command()
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Photographs.")
@click.option("--num-images", "min_images", default=2_000, help="A pass; fewer are repeated.")
@click.option("--repeats", default=5, help="Measured rounds, at least 5.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write it here too.")
@clear_errors
def prepare(json_path: Path | None, **options: Any) -> None:
    """Images prepared per second, one worker and two, against a bare OpenCV loop."""
    measure(PreparationContest, run_preparation_contest, options, json_path)


@main.command()
@click.option("--shards", type=click.Path(path_type=Path), required=True, help="Shard folder.")
@click.option("--minutes", default=2.0, help="Of training, of each run.")
@click.option("--seeds", default=3, help="Runs of each recipe.")
@click.option("--width", default=0.25, help="Factor on channels and hidden units.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Where to train.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write it here too.")
@clear_errors
def recipe(json_path: Path | None, **options: Any) -> None:
    """Errors after equal minutes of training: `modern`, beside torchvision's AlexNet."""
    measure(RecipeContest, run_recipe_contest, options, json_path, recipe_table)


if __name__ == "__main__":
    main()
