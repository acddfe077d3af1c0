"""What is stored is 256x256 RGB of the central square, and can be read again."""

import io
import struct

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import (
    RAW_HEADER,
    ImageError,
    ImageFormat,
    Pixels,
    decode_stored,
    encode,
    fit,
)
from tests.conftest import encoded, photograph
from tests.pipeline.conftest import by_pillow, picture, segments

# ---- geometry ----


def area_average(square: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(side, side, 3) -> (size, size, 3): each output pixel is the mean of what it covers."""
    side = len(square)
    edges = np.arange(size + 1) * side / size
    cells = np.arange(side)
    low, high = edges[:-1, None], edges[1:, None]
    covered = np.clip(np.minimum(high, cells + 1) - np.maximum(low, cells), 0, None)
    weights = covered * size / side  # weights: (output, input)
    return np.asarray(np.einsum("oi,pj,ijc->opc", weights, weights, square, optimize=True))


@pytest.mark.parametrize(
    ("width", "height"), [(512, 512), (768, 520), (301, 400), (257, 257), (400, 259)]
)
def test_shrinking_is_central_square_then_area_average(width: int, height: int) -> None:
    pixels = photograph(np.random.default_rng(4), width, height)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    expected = area_average(pixels[top : top + side, left : left + side].astype(float), 256)
    fitted = fit(pixels)
    assert fitted.shape == (256, 256, 3) and fitted.dtype == np.uint8
    assert np.abs(fitted - expected).max() <= 0.505  # rounding, and float32 weights


@pytest.mark.parametrize("side", [257, 333, 375, 511, 512, 513, 768, 1000, 1023, 1024, 1025])
def test_shrinking_gives_the_bits_of_opencv_on_bytes(side: int) -> None:
    rng = np.random.default_rng(side)
    pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
    pixels[: side // 2] = pixels[: side // 2] // 128 * 255  # averages halfway between two values
    expected = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(fit(pixels), expected)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (300, 256), (256, 301)])
def test_a_shorter_side_of_256_is_cropped_bit_exactly(width: int, height: int) -> None:
    pixels = photograph(np.random.default_rng(5), width, height)
    top, left = (height - 256) // 2, (width - 256) // 2
    np.testing.assert_array_equal(fit(pixels), pixels[top : top + 256, left : left + 256])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 90), (60, 5), (255, 300)])
def test_tiny_images_are_enlarged(width: int, height: int) -> None:
    pixels = photograph(np.random.default_rng(6), width, height)
    fitted = fit(pixels)
    assert fitted.shape == (256, 256, 3) and fitted.dtype == np.uint8
    mirrored = fit(np.ascontiguousarray(pixels[::-1, ::-1]))[::-1, ::-1]
    if (max(width, height) - min(width, height)) % 2 == 0:  # else the crop itself is one off
        assert np.abs(fitted.astype(int) - mirrored).max() <= 1


def test_enlarging_keeps_a_constant_constant() -> None:
    assert (fit(np.full((20, 31, 3), (7, 200, 255), np.uint8)) == (7, 200, 255)).all()


# ---- what is stored ----


def stored_pixels() -> Pixels:
    return fit(photograph(np.random.default_rng(7), 300, 280))


def test_stored_jpeg_is_baseline_420_without_metadata() -> None:
    jpeg = encode(stored_pixels(), ImageFormat(quality=90))
    found = segments(jpeg)
    markers = {marker for marker, _ in found}
    # JFIF header, quantisation tables, baseline frame, Huffman tables, scan: and nothing else.
    assert markers == {0xE0, 0xDB, 0xC0, 0xC4, 0xDA}
    frame = dict(found)[0xC0]
    depth, height, width, channels = struct.unpack(">BHHB", frame[:6])
    assert (depth, height, width, channels) == (8, 256, 256, 3)
    sampling = [frame[6 + 3 * channel + 1] for channel in range(3)]
    assert sampling == [0x22, 0x11, 0x11]


def test_stored_jpeg_has_optimised_huffman_tables() -> None:
    pixels = stored_pixels()
    standard = encoded(Image.fromarray(pixels), quality=90, subsampling=2, optimize=False)
    assert len(encode(pixels, ImageFormat(quality=90))) < len(standard)


def test_stored_jpeg_decodes_bit_equal_to_pillow_and_close_to_what_went_in() -> None:
    pixels = stored_pixels()
    jpeg = encode(pixels, ImageFormat(quality=95))
    again = decode_stored(jpeg)
    np.testing.assert_array_equal(again, by_pillow(jpeg))
    assert np.abs(again.astype(int) - pixels).mean() < 6
    assert np.abs(again.mean((0, 1)) - pixels.mean((0, 1))).max() < 1  # channels not swapped


def test_higher_quality_takes_more_bytes_and_errs_less() -> None:
    pixels = stored_pixels()
    low, high = (encode(pixels, ImageFormat(quality=quality)) for quality in (30, 95))
    assert len(low) < len(high)
    errors = [np.abs(decode_stored(jpeg).astype(int) - pixels).mean() for jpeg in (low, high)]
    assert errors[1] < errors[0]


def test_raw_image_is_an_npy_file_of_the_same_pixels() -> None:
    pixels = stored_pixels()
    raw = encode(pixels, ImageFormat(encoding="raw"))
    assert raw.startswith(RAW_HEADER) and len(raw) == len(RAW_HEADER) + 256 * 256 * 3
    np.testing.assert_array_equal(np.load(io.BytesIO(raw), allow_pickle=False), pixels)
    np.testing.assert_array_equal(decode_stored(raw), pixels)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        pytest.param(encoded(picture(256, 255)), r"\(255, 256, 3\)", id="wrong size"),
        pytest.param(encoded(picture(256, 256))[:2000], "damaged JPEG", id="cut JPEG"),
        pytest.param(b"", "damaged JPEG", id="empty"),
        pytest.param(b"\x93NUMPY\x02" + RAW_HEADER[7:], "another header", id="raw header"),
        pytest.param(RAW_HEADER + bytes(100), "raw image", id="cut raw"),
    ],
)
def test_what_is_not_a_stored_image_is_refused(stored: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_stored(stored)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "png"}, "encoding must be jpeg or raw, not 'png'"),
        ({"quality": 0}, "quality must be within 1..100, not 0"),
        ({"quality": 101}, "quality must be within 1..100, not 101"),
    ],
)
def test_impossible_formats_are_refused(options: dict[str, str | int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFormat(**options)  # type: ignore[arg-type]  # wrong on purpose


def test_settings_tell_formats_apart_and_name_the_libraries() -> None:
    formats = [
        ImageFormat(),
        ImageFormat(quality=80),
        ImageFormat(encoding="raw"),
        ImageFormat(ignore_orientation=True),
    ]
    found = [image_format.settings() for image_format in formats]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert {"opencv", "simplejpeg", "pillow", "libjpeg_turbo"} <= found[0]["versions"].keys()


@pytest.mark.parametrize(
    "image_format",
    [
        ImageFormat(),
        ImageFormat(quality=71, ignore_orientation=True),
        ImageFormat(encoding="raw"),
    ],
)
def test_a_format_comes_back_from_its_settings(image_format: ImageFormat) -> None:
    assert ImageFormat.from_settings(image_format.settings()) == image_format
