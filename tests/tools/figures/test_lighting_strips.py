"""Strips show lighting as training adds it, one component at a time."""

from pathlib import Path

import numpy as np

from pipeline.images import decode_stored
from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics
from tools.figures.lighting_strips import SIGMAS, draw_strips, lit_strips, sigma_colours


def test_a_strip_is_the_centre_crop_plus_so_many_sigmas(shard_folder: Path) -> None:
    dataset = open_dataset(shard_folder)
    statistics = read_statistics(shard_folder, dataset.fingerprint("train"))
    strips = lit_strips(dataset, statistics, row=4)
    place = dataset.index("train")[4]
    tar = (shard_folder / f"train-{place['shard']:06d}.tar").read_bytes()
    stored = decode_stored(tar[place["offset"] :][: place["size"]])
    centre = stored[16:240, 16:240].astype(np.float64)
    added = sigma_colours(statistics)
    assert strips.shape == (3, 7, 224, 224, 3)
    for component in range(3):
        vector = statistics.eigenvectors[:, component]
        expected = 0.1 * np.sqrt(statistics.eigenvalues[component]) * vector
        np.testing.assert_allclose(added[component], expected, rtol=1e-12)
        for i, sigma in enumerate(SIGMAS):
            wanted = centre + sigma * expected
            np.testing.assert_allclose(strips[component, i], wanted, atol=1e-4)
    assert draw_strips(strips, added, 1002).width == 1002
