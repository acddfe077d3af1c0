#!/usr/bin/env python3
"""How fast each stage is, against what else could do its work.

    tools/benchmark.py loader --shards shards/ --against torch --against stock-dali
    tools/benchmark.py prepare --images /path/to/photographs
"""

from pathlib import Path

import click

from pipeline.backends import BACKENDS
from pipeline.cores import available_cores
from pipeline.messages import clear_errors
from tools.measure.contest import LoaderContest, run_loader_contest
from tools.measure.contestants import PEERS
from tools.measure.preparation import PreparationContest, run_preparation_contest
from tools.measure.table import publish, usage_errors


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
@click.option(
    "--raw-shards", type=click.Path(path_type=Path),
    help="The same images as raw shards: measured too, by turns with those of --shards.",
)  # fmt: skip
@click.option("--cold", is_flag=True, help="Drop files from the page cache before each pass.")
@click.option("--threads", default=available_cores(), help="Threads or workers, of each.")
@click.option("--batch-size", default=128, help="Images.")
@click.option("--repeats", default=5, help="Measured rounds, at least 5.")
@click.option("--images", default=10_000, help="Per repeat; a smaller data set is repeated.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write it here too.")
@clear_errors
def loader(
    shards: Path, backends: tuple[str, ...], peers: tuple[str, ...], raw_shards: Path | None,
    cold: bool, threads: int, batch_size: int, repeats: int, images: int, json_path: Path | None,
) -> None:  # fmt: skip
    """Training batches per second (crop, flip, lighting, float), the CPU time they cost the thread
    that takes them, and the memory that is kept from pass to pass: one pass is one epoch."""
    with usage_errors():
        contest = LoaderContest(
            shards=shards, backends=backends, peers=peers, num_threads=threads,
            batch_size=batch_size, repeats=repeats, min_images=images,
            raw_shards=raw_shards, cold=cold,
        )  # fmt: skip
    publish(run_loader_contest(contest, lambda line: click.echo(line, err=True)), json_path)


@main.command()
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Photographs.")
@click.option("--num-images", default=2_000, help="Per repeat; a smaller folder is repeated.")
@click.option("--repeats", default=5, help="Measured rounds, at least 5.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write it here too.")
@clear_errors
def prepare(images: Path, num_images: int, repeats: int, json_path: Path | None) -> None:
    """Images prepared per second, one worker and two, against a bare OpenCV loop."""
    with usage_errors():
        contest = PreparationContest(images=images, min_images=num_images, repeats=repeats)
    publish(run_preparation_contest(contest, lambda line: click.echo(line, err=True)), json_path)


if __name__ == "__main__":
    main()
