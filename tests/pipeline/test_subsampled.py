"""4:2:0 in integers: half the bytes, grey exact, and as near to a picture as JPEG's own."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.images import fit
from pipeline.subsampled import SUBSAMPLED_BYTES, restored, subsampled
from tests.conftest import photograph


def test_it_takes_half_the_bytes() -> None:
    stored = subsampled(np.zeros((256, 256, 3), np.uint8))
    assert stored.dtype == np.uint8 and stored.shape == (SUBSAMPLED_BYTES,)
    assert 2 * SUBSAMPLED_BYTES == 256 * 256 * 3


@pytest.mark.parametrize("level", [0, 1, 127, 128, 254, 255])
def test_grey_comes_back_as_it_was(level: int) -> None:
    grey = np.full((256, 256, 3), level, np.uint8)
    assert (restored(subsampled(grey)) == level).all()


@pytest.mark.parametrize("colour", [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])
def test_no_colour_runs_over(colour: list[int]) -> None:
    plain = np.broadcast_to(np.array(colour, np.uint8), (256, 256, 3))
    assert np.abs(restored(subsampled(plain)).astype(int) - plain).max() <= 2


def test_light_and_colour_are_those_of_float_arithmetic() -> None:
    """JFIF 1.02's formulas in float64: what is stored is at most half a level off."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    stored = subsampled(pixels).astype(float)
    light = pixels @ np.array([0.299, 0.587, 0.114])
    four = pixels.reshape(128, 2, 128, 2, 3).mean((1, 3))
    blue = 128 + four @ np.array([-0.168735892, -0.331264108, 0.5])
    red = 128 + four @ np.array([0.5, -0.418687589, -0.081312411])
    expected = np.concatenate([light.ravel(), blue.ravel(), red.ravel()])
    assert np.abs(stored - expected).max() < 0.51


def test_a_photograph_comes_back_as_near_as_through_a_jpeg_of_best_quality() -> None:
    picture = fit(photograph(np.random.default_rng(0), 300, 256))
    error = np.abs(restored(subsampled(picture)).astype(int) - picture).mean()
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=100, subsampling="4:2:0")
    through_jpeg = np.abs(np.asarray(Image.open(file)).astype(int) - picture).mean()
    assert 0 < error <= 1.05 * through_jpeg


def test_many_at_once_are_each_alone() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 256, 256, 3), np.uint8)
    stored = np.stack([subsampled(one) for one in pixels])
    alone = np.stack([restored(one) for one in stored])
    assert restored(stored).tobytes() == alone.tobytes()
