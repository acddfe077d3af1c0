#!/usr/bin/env python3
"""Turns a folder of photographs, or ImageNet's archives, into verified 256-px shards.

    tools/prepare_shards.py /path/to/imagenet --out shards
"""

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.cores import available_cores
from pipeline.locations import Location
from pipeline.messages import clear_errors
from pipeline.sources import FORMATS
from tools.preparation import ENGINES, Preparation


@click.command(context_settings={"show_default": True})
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", default="shards", type=Location(), help="Shard folder, or s3://… URL.")
@click.option(
    "--workers", default=available_cores(), type=click.IntRange(min=1), help="Processes."
)
@click.option(
    "--images-per-shard", default=1000, type=click.IntRange(min=1), help="Images, at most."
)
@click.option("--quality", default=90, type=click.IntRange(1, 100), help="Of the JPEGs.")
@click.option(
    "--shuffle-seed",
    default=0,
    type=click.IntRange(min=0),
    help="Decides which image goes to which shard.",
)
@click.option(
    "--encoding",
    default="jpeg",
    type=click.Choice(["jpeg", "raw"]),
    help="raw: decoded pixels, 197 kB per image; loads faster where the disk keeps up.",
)
@click.option("--ignore-orientation", is_flag=True, help="Leave EXIF-rotated images as stored.")
@click.option("--format", default="auto", type=click.Choice(["auto", *FORMATS]), help="Of SOURCE.")
@click.option("--val-fraction", type=float, help="Share of each class to set apart as val.")
@click.option("--engine", default="local", type=click.Choice(ENGINES), help="Where tasks run.")
@click.option("--ray-address", help="Of the Ray cluster.  [default: Ray on this machine]")
@click.option("--fresh", is_flag=True, help="Remove the shards in the folder, start over.")
@click.option("--strict", is_flag=True, help="Exit with 3 if anything was quarantined.")
@clear_errors
def main(strict: bool, **options: Any) -> None:
    """Prepares SOURCE; a second start goes on where the first ended.

    SOURCE is train/<class>/* with val/<class>/*, one tree <class>/*, ILSVRC's or class archives,
    Kaggle's tree, or parquet files; it is recognised. Every image found is either written, decoded
    again and summed, or listed in quarantine.jsonl.
    """
    dataset = Preparation(**options).run()
    if strict and any(split.quarantined for split in dataset.splits.values()):
        sys.exit(3)


if __name__ == "__main__":
    main()
