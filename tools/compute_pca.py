#!/usr/bin/env python3
"""Computes the mean image and the colour covariance eigenvectors of prepared shards.

    tools/compute_pca.py shards
"""

from pathlib import Path

import click
import numpy as np

from pipeline.locations import Location
from pipeline.manifest import open_dataset
from pipeline.messages import clear_errors
from pipeline.moments import (
    MEAN_NAME,
    PCA_NAME,
    ROOTS_2012,
    Statistics,
    statistics,
    write_statistics,
)
from pipeline.totals import decode_sums, merge_sums
from tools.progress import Progress

ALPHA_STD = 0.1  # the paper, section 4.1


@click.command(context_settings={"show_default": True})
@click.argument("shards", default="shards", type=Location())
@click.option("--recompute", is_flag=True, help="Decode every image again; same result, slower.")
@clear_errors
def main(shards: Path, recompute: bool) -> None:
    """Writes pca.json and mean.npy into SHARDS, over every pixel of its training split."""
    dataset = open_dataset(shards)
    if recompute:
        with Progress("pca", total=dataset.num_samples("train"), unit="image") as progress:
            sums = decode_sums(dataset, "train", progress.show)
    else:
        sums = merge_sums(dataset, "train")
    found = statistics(sums, dataset.fingerprint("train"))
    write_statistics(shards, found)
    _print(shards, found)


def _print(shards: Path, found: Statistics) -> None:
    roots = np.sqrt(found.eigenvalues)
    click.echo(f"{found.num_pixels:,} pixels; mean colour (R, G, B) {_row(found.mean)}")
    click.echo(f"eigenvalues               {_row(found.eigenvalues)}")
    of_2012 = "  ".join(map(str, ROOTS_2012))
    click.echo(f"square roots              {_row(roots)}   (ImageNet in 2012: {of_2012})")
    for axis in range(3):
        offset = found.eigenvectors[:, axis] * roots[axis] * ALPHA_STD
        click.echo(
            f"one sigma of lighting along component {axis + 1} adds (R, G, B) {_row(offset)}, "
            f"length {roots[axis] * ALPHA_STD:.2f}"
        )
    click.echo(f"wrote {shards / PCA_NAME} and {MEAN_NAME}")
    click.echo(f"next: trainer/run.py --shards {shards}")


def _row(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    return "  ".join(f"{value:8.2f}" for value in values)


if __name__ == "__main__":
    main()
