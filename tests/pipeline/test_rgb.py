"""Opened images of any mode become RGB, strip by strip as if at once."""

import numpy as np
import pytest
from PIL import Image

from pipeline.images import ImageError
from pipeline.photographs import decode
from tests.conftest import encoded, with_orientation
from tests.pipeline.conftest import picture


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_palette_image_gets_its_colours(image_format: str) -> None:
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    pixels = decode(encoded(palette, image_format))
    np.testing.assert_array_equal(pixels, np.asarray(palette.convert("RGB")))


def test_transparency_is_laid_over_white() -> None:
    rng = np.random.default_rng(3)
    rgba = rng.integers(0, 256, (20, 30, 4), np.uint8)
    share = rgba[:, :, 3:] / 255.0
    expected = rgba[:, :, :3] * share + 255.0 * (1 - share)
    pixels = decode(encoded(Image.fromarray(rgba, "RGBA"), "PNG"))
    assert np.abs(pixels - expected).max() <= 1.0


def test_transparent_palette_entry_is_laid_over_white() -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(1, (4, 0, 8, 8))
    pixels = decode(encoded(palette, "PNG", transparency=0))
    assert (pixels[:, :4] == 255).all() and (pixels[:, 4:] == [200, 100, 50]).all()


def test_16_bit_greyscale_is_scaled_not_clipped() -> None:
    wide = np.arange(0, 65536, 37, dtype=np.uint16)[:1760].reshape(40, 44)
    pixels = decode(encoded(Image.fromarray(wide), "PNG"))
    expected = np.rint(wide / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, 2))


def test_what_is_turned_to_rgb_in_strips_is_as_if_it_were_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(11)
    rgba = Image.fromarray(rng.integers(0, 256, (61, 93, 4), np.uint8), "RGBA")
    wide = Image.fromarray(rng.integers(0, 65536, (61, 93), np.uint16))
    rotated = with_orientation(6)
    for data in (
        encoded(rgba, "PNG"),
        encoded(rgba.convert("LA"), "PNG"),
        encoded(picture().convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=5),
        encoded(picture().convert("CMYK")),
        encoded(wide, "PNG"),
        encoded(picture(), "PNG", exif=rotated),
        encoded(picture(), "TIFF"),
    ):
        monkeypatch.setattr("pipeline.rgb.STRIP_PIXELS", 1 << 20)
        whole = decode(data)
        for num_pixels in (1, 200, 93 * 7):
            monkeypatch.setattr("pipeline.rgb.STRIP_PIXELS", num_pixels)
            np.testing.assert_array_equal(decode(data), whole)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        pytest.param(np.float32, [0, 0.25, 1], [0, 64, 255], id="shares of white"),
        pytest.param(np.float32, [0, 100.4, 255], [0, 100, 255], id="floats of bytes"),
        pytest.param(np.float32, [0, 257, 65535], [0, 1, 255], id="floats of 16 bits"),
        pytest.param(np.int32, [0, 1, 255], [0, 1, 255], id="integers of bytes"),
        pytest.param(np.int32, [0, 257, 65535], [0, 1, 255], id="integers of 16 bits"),
    ],
)
def test_wide_values_are_scaled_by_what_they_can_only_mean(
    dtype: type[np.generic], values: list[float], expected: list[int]
) -> None:
    image = Image.fromarray(np.repeat(np.array([values], dtype), 5, 0))
    pixels = decode(encoded(image, "TIFF"))
    np.testing.assert_array_equal(pixels[2], np.repeat(np.array([expected]).T, 3, 1))


@pytest.mark.parametrize(
    ("dtype", "values", "reason"),
    [
        (np.float32, [-0.5, 0.5], r"values from -0.5 to 0.5; expected 0..255, 0..65535 or"),
        (np.float32, [0, 1e6], r"values from 0 to 1e\+06; expected"),
        (np.float32, [0, np.inf], r"values from 0 to inf; expected"),
        (np.float32, [0, np.nan, 1], r"values .*(expected|no numbers)"),
        (np.int32, [-1, 200], r"values from -1 to 200; expected"),
        (np.int32, [0, 70_000], r"values from 0 to 70000; expected"),
    ],
)
def test_wide_values_of_no_known_scale_are_quarantined(
    dtype: type[np.generic], values: list[float], reason: str
) -> None:
    data = encoded(Image.fromarray(np.array([values] * 3, dtype)), "TIFF")
    with pytest.raises(ImageError, match=f"cannot be decoded: {reason}"):
        decode(data)


def test_black_and_white_png() -> None:
    bits = picture().convert("1")
    np.testing.assert_array_equal(
        decode(encoded(bits, "PNG"))[:, :, 1], np.asarray(bits).astype(np.uint8) * 255
    )


def test_a_dark_image_of_16_bits_stays_dark() -> None:
    dark = Image.fromarray(np.full((20, 30), 200, np.uint16))
    assert decode(encoded(dark, "PNG")).max() == 1  # 200 of 65,535
