"""The oracle itself: crop, flip and lighting, against plain loops over pixels."""

import numpy as np
import pytest

from pipeline.images import Pixels
from pipeline.reference import cut, render


def image() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)


@pytest.mark.parametrize("x", [0, 7, 32])
@pytest.mark.parametrize("y", [0, 19, 32])
@pytest.mark.parametrize("flip", [0, 1])
def test_each_pixel_comes_from_its_place(x: int, y: int, flip: int) -> None:
    pixels = image()
    shown = cut(pixels, np.array([x, y, flip], np.int32))
    assert shown.shape == (224, 224, 3)
    for row, column in ((0, 0), (0, 223), (223, 0), (223, 223), (100, 13)):
        source = 223 - column if flip else column
        assert (shown[row, column] == pixels[y + row, x + source]).all()


def test_lighting_adds_one_colour_to_every_pixel_and_is_not_clamped() -> None:
    pixels = image()
    crop, offset = np.array([3, 5, 1], np.int32), np.array([300.5, -260.25, 0.125], np.float32)
    shown = render(pixels, crop, offset)
    assert shown.dtype == np.float32
    np.testing.assert_array_equal(shown - cut(pixels, crop), np.broadcast_to(offset, shown.shape))
    assert shown.min() < 0 and shown.max() > 255


def test_the_image_itself_is_left_alone() -> None:
    pixels = image()
    render(pixels, np.zeros(3, np.int32), np.ones(3, np.float32))
    np.testing.assert_array_equal(pixels, image())
