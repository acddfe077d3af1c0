#!/usr/bin/env python3
"""How fast each stage is, against what else could do its work.

    tools/benchmark.py loader --shards shards/ --against torch --against stock-dali
"""

import json
import sys
from pathlib import Path

import click

from pipeline.atomic import write_whole
from pipeline.backends import BACKENDS
from pipeline.cores import available_cores
from tools.measure.contest import LoaderContest, run_loader_contest
from tools.measure.contestants import PEERS
from tools.measure.table import report_table
from pipeline.messages import clear_errors


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
@click.option("--threads", default=available_cores(), help="Threads or workers, of each.")
@click.option("--batch-size", default=128, help="Images.")
@click.option("--repeats", default=5, help="Measured rounds, at least 5.")
@click.option("--images", default=10_000, help="Per repeat; a smaller data set is repeated.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write it here too.")
@clear_errors
def loader(
    shards: Path, backends: tuple[str, ...], peers: tuple[str, ...], threads: int,
    batch_size: int, repeats: int, images: int, json_path: Path | None,
) -> None:  # fmt: skip
    """Training batches per second from memory-cached shards: crop, flip, lighting, float."""
    try:
        contest = LoaderContest(
            shards=shards, backends=backends, peers=peers, num_threads=threads,
            batch_size=batch_size, repeats=repeats, min_images=images,
        )  # fmt: skip
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    report = run_loader_contest(contest, lambda line: click.echo(line, err=True))
    click.echo(report_table(report))
    text = json.dumps(report)
    if json_path is not None:
        write_whole(json_path, f"{text}\n".encode())
    click.echo(text)
    if not report["results"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
