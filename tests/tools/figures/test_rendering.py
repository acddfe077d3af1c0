"""Rows are rendered as the reference renders them, each with its own crop and offset."""

from pathlib import Path

import numpy as np

from pipeline.draws import draws
from pipeline.images import decode_stored
from pipeline.manifest import open_dataset
from pipeline.reference import render
from tools.figures.rendering import render_rows


def test_rows_are_rendered_as_the_oracle_renders_them(
    shard_folder: Path, raw_shard_folder: Path
) -> None:
    for folder in (shard_folder, raw_shard_folder):
        dataset, rows = open_dataset(folder), np.array([30, 2, 11])
        crop = draws(1, 0, 0, 3).crop
        offsets = np.array([[1.5, -2, 0], [0, 0, 0], [-9, 4, 300]], np.float32)
        (stored,) = render_rows(dataset, rows, [(crop, None)], full=True)
        (lit,) = render_rows(dataset, rows, [(crop, offsets)], full=False)
        for i, place in enumerate(dataset.index("train")[rows]):
            tar = (folder / f"train-{place['shard']:06d}.tar").read_bytes()
            whole = decode_stored(tar[place["offset"] :][: place["size"]])
            np.testing.assert_array_equal(stored[i], whole)
            np.testing.assert_array_equal(lit[i], render(whole, crop[i], offsets[i]))
