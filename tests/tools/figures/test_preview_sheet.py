"""The sheet holds its parts: samples, strips, the mean image and the colours."""

from pathlib import Path

import numpy as np

from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics
from tools.figures.canvas import GAP_PX, shown, tile
from tools.figures.contact_sheet import augmented, contact_sheet, pick_rows
from tools.figures.preview_sheet import MEAN_PX, TITLE_PX, preview_sheet


def test_the_sheet_shows_samples_on_top_and_the_mean_image_below(shard_folder: Path) -> None:
    dataset = open_dataset(shard_folder)
    statistics = read_statistics(shard_folder, dataset.fingerprint("train"))
    sheet = preview_sheet(dataset, statistics, num_images=3, num_draws=2, seed=1)
    drawn = np.asarray(sheet)
    assert sheet.width == 1002
    rows = pick_rows(dataset, 3, 1)
    stored, renderings = augmented(dataset, statistics, rows, num_draws=2, seed=1)
    names = [dataset.classes[label] for label in dataset.index("train")["label"][rows]]
    samples = np.asarray(contact_sheet(stored, renderings, names))
    height, width, _ = samples.shape
    np.testing.assert_array_equal(drawn[TITLE_PX : TITLE_PX + height, :width], samples)
    mean = np.asarray(tile(shown(statistics.mean_image), MEAN_PX))
    column = drawn[:, GAP_PX : GAP_PX + MEAN_PX]
    found = [y for y in range(len(column) - MEAN_PX) if (column[y] == mean[0]).all()]
    assert len(found) == 1
    np.testing.assert_array_equal(column[found[0] : found[0] + MEAN_PX], mean)


def test_more_draws_make_a_wider_sheet(shard_folder: Path) -> None:
    dataset = open_dataset(shard_folder)
    statistics = read_statistics(shard_folder, dataset.fingerprint("train"))
    sheet = preview_sheet(dataset, statistics, num_images=1, num_draws=8, seed=0)
    assert sheet.width == 9 * 166 + 6
