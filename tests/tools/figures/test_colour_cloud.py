"""The cloud shows colours where they lie: grey on the vertical, lightness upwards."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics
from tools.figures.canvas import PAPER
from tools.figures.colour_cloud import (
    VIEWS,
    axis_ends,
    draw_cloud,
    draw_clouds,
    pick_colours,
    project,
)

SIDE_PX = 300


@pytest.mark.parametrize("view", [0, 1])
def test_greys_lie_on_the_vertical_black_below_and_everything_is_inside(view: int) -> None:
    right = VIEWS[view][1]
    greys = np.repeat(np.array([[0.0], [127.5], [255.0]]), 3, 1)
    black, middle, white = project(greys, right, SIDE_PX)
    assert black[0] == pytest.approx(150) and white[0] == pytest.approx(150)
    assert middle == pytest.approx([150, 150]) and white[1] < middle[1] < black[1]
    cube = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], float)
    places = project(cube, right, SIDE_PX)
    assert places.min() > 0 and places.max() < SIDE_PX - 2


def test_each_view_has_its_contrast_from_left_to_right() -> None:
    (_, red), (_, yellow) = VIEWS
    green_x, red_x = project(np.array([[0, 255, 0], [255, 0, 0.0]]), red, SIDE_PX)[:, 0]
    blue_x, yellow_x = project(np.array([[0, 0, 255], [255, 255, 0.0]]), yellow, SIDE_PX)[:, 0]
    assert green_x < 150 < red_x and blue_x < 150 < yellow_x


def test_a_colour_is_drawn_as_itself_at_its_place(shard_folder: Path) -> None:
    dataset = open_dataset(shard_folder)
    statistics = read_statistics(shard_folder, dataset.fingerprint("train"))
    colours = np.array([[250, 20, 30]], np.uint8)
    right = VIEWS[0][1]
    drawn = np.asarray(draw_cloud(colours, statistics, right, SIDE_PX))
    x, y = project(colours.astype(float), right, SIDE_PX)[0].astype(int)
    assert (drawn[y : y + 2, x : x + 2] == colours[0]).all()
    assert (drawn[2, 2] == PAPER).all()
    assert draw_clouds(colours, statistics, SIDE_PX, 6).width == 2 * SIDE_PX + 6


def test_axes_reach_two_deviations_from_the_mean_along_the_eigenvectors(
    shard_folder: Path,
) -> None:
    dataset = open_dataset(shard_folder)
    statistics = read_statistics(shard_folder, dataset.fingerprint("train"))
    ends = axis_ends(statistics)
    np.testing.assert_allclose(ends.mean(1), np.tile(statistics.mean, (3, 1)))
    spans = (ends[:, 1] - ends[:, 0]) / 4
    np.testing.assert_allclose(
        spans @ spans.T, np.diag(statistics.eigenvalues), atol=1e-6 * statistics.eigenvalues[0]
    )


def test_colours_are_pixels_of_the_images_and_the_same_again() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    found = pick_colours(images, 50)
    there = {tuple(colour) for colour in images.reshape(-1, 3).tolist()}
    assert found.shape == (50, 3) and {tuple(colour) for colour in found.tolist()} <= there
    np.testing.assert_array_equal(found, pick_colours(images, 50))
