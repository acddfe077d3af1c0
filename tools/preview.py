#!/usr/bin/env python3
"""Draws a sheet: training images, what the network is shown of them, lighting, mean, colours.

    tools/preview.py shards --out preview.png
"""

import io
from pathlib import Path

import click

from pipeline.atomic import require_place, write_whole
from pipeline.manifest import open_dataset
from pipeline.messages import clear_errors
from pipeline.moments import read_statistics
from tools.figures.preview_sheet import preview_sheet


@click.command(context_settings={"show_default": True})
@click.argument("shards", default="shards", type=click.Path(path_type=Path))
@click.option("--out", default="preview.png", type=click.Path(path_type=Path), help="PNG file.")
@click.option("--images", default=6, type=click.IntRange(1, 64), help="Rows of the sheet.")
@click.option("--draws", default=5, type=click.IntRange(1, 16), help="Augmented forms of each.")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="Decides images and draws.")
@click.option(
    "--lighting",
    default="std",
    type=click.Choice(["std", "variance"]),
    help="As the preset's: variance is that of `paper`.",
)
@clear_errors
def main(shards: Path, out: Path, images: int, draws: int, seed: int, lighting: str) -> None:
    """Draws images of SHARDS as stored and after crop, flip and PCA lighting; one of them at -3 to
    +3 sigma along each principal component; the mean image; and the colours in the RGB cube."""
    require_place(out, "--out")
    dataset = open_dataset(shards)
    statistics = read_statistics(shards, dataset.fingerprint("train"))
    sheet = preview_sheet(
        dataset, statistics, num_images=images, num_draws=draws, seed=seed, lighting=lighting
    )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_whole(out, buffer.getvalue())
    click.echo(f"wrote {out}, {sheet.width} x {sheet.height} px")


if __name__ == "__main__":
    main()
