#!/usr/bin/env python3
"""Draws a contact sheet: stored training images beside what the network is shown of them.

    tools/preview.py shards --out preview.png
"""

import io
from pathlib import Path

import click

from pipeline.atomic import write_whole
from pipeline.manifest import open_dataset
from pipeline.messages import clear_errors
from pipeline.moments import read_statistics
from tools.figures.contact_sheet import augmented, contact_sheet, pick_rows


@click.command(context_settings={"show_default": True})
@click.argument("shards", default="shards", type=click.Path(path_type=Path))
@click.option("--out", default="preview.png", type=click.Path(path_type=Path), help="PNG file.")
@click.option("--images", default=6, type=click.IntRange(1, 64), help="Rows of the sheet.")
@click.option("--draws", default=5, type=click.IntRange(1, 16), help="Augmented forms of each.")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="Decides images and draws.")
@clear_errors
def main(shards: Path, out: Path, images: int, draws: int, seed: int) -> None:
    """Draws images of SHARDS as stored and after crop, flip and PCA lighting."""
    dataset = open_dataset(shards)
    statistics = read_statistics(shards, dataset.fingerprint("train"))
    rows = pick_rows(dataset, images, seed)
    stored, renderings = augmented(dataset, statistics, rows, num_draws=draws, seed=seed)
    labels = dataset.index("train")["label"][rows]
    sheet = contact_sheet(stored, renderings, [dataset.classes[label] for label in labels])
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_whole(out, buffer.getvalue())
    click.echo(f"wrote {out}, {sheet.width} x {sheet.height} px")


if __name__ == "__main__":
    main()
