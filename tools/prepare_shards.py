#!/usr/bin/env python3
"""Turns a folder of photographs into verified 256-px shards.

    tools/prepare_shards.py /path/to/imagenet --out shards
"""

import sys
import time
from pathlib import Path

import click

from pipeline.cores import available_cores
from pipeline.engines import run_tasks
from pipeline.images import ImageFormat
from pipeline.manifest import remove_dataset
from pipeline.plan import Settings
from pipeline.prepare import prepare
from pipeline.sources import open_source
from tools.account import print_account
from pipeline.messages import clear_errors
from tools.progress import Progress


@click.command(context_settings={"show_default": True})
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", default="shards", type=click.Path(path_type=Path), help="Shard folder.")
@click.option("--workers", default=available_cores(), help="Processes, at least 1.")
@click.option("--images-per-shard", default=1000, help="Images, at most, in one shard.")
@click.option("--quality", default=90, help="JPEG quality, 1 to 100.")
@click.option("--shuffle-seed", default=0, help="Decides which image goes to which shard.")
@click.option(
    "--encoding",
    default="jpeg",
    type=click.Choice(["jpeg", "raw"]),
    help="raw: decoded pixels, 197 kB per image; loads faster where the disk keeps up.",
)
@click.option("--ignore-orientation", is_flag=True, help="Leave EXIF-rotated images as stored.")
@click.option("--fresh", is_flag=True, help="Remove the shards in the folder, start over.")
@click.option("--strict", is_flag=True, help="Exit with 3 if anything was quarantined.")
@clear_errors
def main(
    source: Path, out: Path, workers: int, images_per_shard: int, quality: int, shuffle_seed: int,
    encoding: str, ignore_orientation: bool, fresh: bool, strict: bool,
) -> None:  # fmt: skip
    """Prepares SOURCE (train/<class>/* and val/<class>/*); a second start goes on where it ended.

    Every image found is either written, decoded again and summed, or listed in quarantine.jsonl.
    """
    if workers < 1:
        raise click.UsageError(f"--workers must be at least 1, not {workers}")
    image_format = ImageFormat(
        encoding=encoding, quality=quality, ignore_orientation=ignore_orientation
    )
    settings = Settings(
        image_format=image_format, images_per_shard=images_per_shard, shuffle_seed=shuffle_seed
    )
    start = time.monotonic()
    found = open_source(source)
    if fresh:
        click.echo(f"--fresh: removed {remove_dataset(out)} files of earlier shards from {out}")
    outcome = prepare(
        found,
        out,
        settings,
        lambda tasks: run_tasks(
            tasks,
            workers,
            Progress("prepare", total=sum(len(task.ids) for task in tasks), unit="image").show,
        ),
    )
    print_account(outcome, found, seconds=time.monotonic() - start)
    if strict and any(split.quarantined for split in outcome.dataset.splits.values()):
        sys.exit(3)


if __name__ == "__main__":
    main()
