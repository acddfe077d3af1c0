"""Pictures in a page are whole files of the pixels they were made from."""

import base64
import io

import numpy as np
from PIL import Image

from tests.conftest import photograph as made_up
from tools.figures.inline import drawing, photograph


def opened(url: str) -> Image.Image:
    kind, _, data = url.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert kind == f"data:{Image.MIME[image.format or '']}"
    return image


def test_a_drawing_keeps_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    np.testing.assert_array_equal(np.asarray(opened(drawing(pixels))), pixels)


def test_a_photograph_is_shrunk_in_its_proportions_and_never_enlarged() -> None:
    pixels = made_up(np.random.default_rng(0), 300, 150)
    assert opened(photograph(pixels, 100)).size == (100, 50)
    shown = opened(photograph(pixels, 500))
    assert shown.size == (300, 150)
    assert np.abs(np.asarray(shown).astype(int) - pixels).mean() < 12
