"""The contact sheet shows what training sees: the pipeline's own pixels, of the draws it names."""

from pathlib import Path

import numpy as np

from pipeline.draws import draws, lighting_offsets
from pipeline.images import decode_stored
from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics
from pipeline.reference import render
from tools.figures.contact_sheet import augmented, contact_sheet, pick_rows


def test_rows_show_each_image_as_stored_and_as_every_draw_renders_it(shard_folder: Path) -> None:
    dataset = open_dataset(shard_folder)
    statistics = read_statistics(shard_folder, dataset.fingerprint("train"))
    rows = pick_rows(dataset, 5, seed=3)
    stored, renderings = augmented(dataset, statistics, rows, num_draws=2, seed=3)
    assert len(set(rows.tolist())) == len(stored) == 5 and len(renderings) == 2
    index = dataset.index("train")[rows]
    assert set(index["label"].tolist()) == {0, 1, 2}  # as many classes as there are
    for row, pixels in zip(index, stored, strict=True):
        tar = (shard_folder / f"train-{row['shard']:06d}.tar").read_bytes()
        np.testing.assert_array_equal(
            pixels, decode_stored(tar[row["offset"] :][: row["size"]])
        )
    for epoch, rendered in enumerate(renderings):
        drawn = draws(3, epoch, 0, 5)
        scale = np.sqrt(statistics.eigenvalues)
        offsets = lighting_offsets(drawn.alpha, statistics.eigenvectors, scale)
        expected = [render(*each) for each in zip(stored, drawn.crop, offsets, strict=True)]
        np.testing.assert_array_equal(rendered, np.stack(expected))
    sheet = contact_sheet(stored, renderings, ["a", "b", "c", "d", "e"])
    assert sheet.size == (3 * 166 + 6, 22 + 5 * 166 + 6)
