#!/usr/bin/env python3
"""Draw a small image folder to try everything on: ten classes of made-up photographs.

    tools/make_demo_images.py demo/images

writes demo/images/train/<class>/*.JPEG and demo/images/val/<class>/*.JPEG. The classes differ in
shape and texture; colours tell nothing. As in real collections a few files are greyscale, CMYK or
PNG, and two in train are broken. The same arguments give the same bytes, and draw only what is
missing.
"""

import shlex
from pathlib import Path

import click

from pipeline.cores import available_cores
from pipeline.messages import clear_errors
from tools.synthetic.folder import DemoFolder
from tools.synthetic.picture import CLASSES


@click.command(context_settings={"show_default": True})
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--train-per-class", type=click.IntRange(min=2), default=150, metavar="IMAGES",
    help="Training images of each class.",
)
@click.option(
    "--val-per-class", type=click.IntRange(min=1), default=30, metavar="IMAGES",
    help="Validation images of each class.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, metavar="NUMBER",
    help="Another seed gives other images.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=available_cores,
    metavar="PROCESSES", show_default="one per CPU", help="Processes that draw.",
)
@clear_errors
def main(out: Path, train_per_class: int, val_per_class: int, seed: int, workers: int) -> None:
    """Draw ten classes of made-up photographs into the folder OUT, which must be new or empty."""
    folder = DemoFolder(
        path=out, train_per_class=train_per_class, val_per_class=val_per_class, seed=seed
    )
    try:
        folder.claim()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    folder.fill(workers)
    click.echo(
        f"{len(folder.list_pictures())} images of {len(CLASSES)} classes in {out}, two of them "
        f"broken on purpose; next: tools/prepare_shards.py {shlex.quote(str(out))} --out shards"
    )


if __name__ == "__main__":
    main()
