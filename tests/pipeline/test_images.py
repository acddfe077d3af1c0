"""Any photograph becomes 256x256 RGB, or the reason is said; what is stored can be read again."""

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import (
    MAX_PIXELS,
    RAW_HEADER,
    ImageError,
    ImageFormat,
    Pixels,
    decode,
    decode_stored,
    encode,
    fit,
)
from tests.conftest import encoded, photograph, with_orientation

# What the viewer sees of an image stored with an orientation: EXIF 2.3, tag 274 (where the
# stored row 0 and column 0 belong).
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def picture(width: int = 93, height: int = 61, seed: int = 0) -> Image.Image:
    return Image.fromarray(photograph(np.random.default_rng(seed), width, height))


def by_pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """The marker segments of a JPEG up to its first scan: (marker, payload)."""
    assert jpeg[:2] == b"\xff\xd8"
    found, at = [], 2
    while True:
        mark, marker, length = struct.unpack(">BBH", jpeg[at : at + 4])
        assert mark == 0xFF
        found.append((marker, jpeg[at + 4 : at + 2 + length]))
        at += 2 + length
        if marker == 0xDA:
            return found


def without_segment(jpeg: bytes, unwanted: int) -> bytes:
    kept = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
        for marker, payload in segments(jpeg)
        if marker != unwanted
    )
    scan = sum(4 + len(payload) for _, payload in segments(jpeg)) + 2
    return b"\xff\xd8" + kept + jpeg[scan:]


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its frame header."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


# ---- decoding ----


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"subsampling": 0}, id="4:4:4"),
        pytest.param({"subsampling": 1}, id="4:2:2"),
        pytest.param({"subsampling": 2}, id="4:2:0"),
        pytest.param({"progressive": True}, id="progressive"),
        pytest.param({"quality": 20, "optimize": True}, id="quality 20"),
    ],
)
def test_a_jpeg_decodes_bit_equal_to_pillow(options: dict[str, Any]) -> None:
    data = encoded(picture(), **options)
    np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_greyscale_jpeg_becomes_three_equal_channels() -> None:
    data = encoded(picture().convert("L"))
    pixels = decode(data)
    np.testing.assert_array_equal(pixels, by_pillow(data))
    assert (pixels == pixels[:, :, :1]).all() and pixels.std() > 0


@pytest.mark.parametrize("adobe", [True, False], ids=["Adobe", "plain"])
def test_cmyk_red_stays_red(adobe: bool) -> None:
    # Photographs store CMYK inverted, as Adobe does; where segment APP14, which says so, is
    # missing, Pillow and OpenCV take it for granted.
    data = encoded(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), quality=95)
    if not adobe:
        data = without_segment(data, 0xEE)
    assert (0xEE in dict(segments(data))) == adobe
    assert np.abs(decode(data).astype(int) - [255, 0, 0]).max() <= 3


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
        monkeypatch.setattr("pipeline.images.STRIP_PIXELS", 1 << 20)
        whole = decode(data)
        for num_pixels in (1, 200, 93 * 7):
            monkeypatch.setattr("pipeline.images.STRIP_PIXELS", num_pixels)
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


PEAK_OF = """
import resource, sys
from pipeline.images import decode
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert decode(data).shape == (4000, 4100, 3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux alone")
@pytest.mark.parametrize(
    ("mode", "image_format", "bytes_per_pixel"),
    [
        ("RGB", "JPEG", 3),
        ("CMYK", "JPEG", 7),
        ("L", "PNG", 4),
        ("P", "PNG", 4),
        ("I;16", "PNG", 5),
        ("RGB", "PNG", 7),
        ("RGBA", "PNG", 7),
        ("F", "TIFF", 7),
    ],
)
def test_the_memory_of_a_large_image_is_what_is_documented(
    tmp_path: Path, mode: str, image_format: str, bytes_per_pixel: int
) -> None:
    options = {"compress_level": 1} if image_format == "PNG" else {}
    (tmp_path / "image").write_bytes(
        encoded(Image.new(mode, (4100, 4000), 0), image_format, **options)
    )
    command = [sys.executable, "-c", PEAK_OF, str(tmp_path / "image")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 4000 * 4100 * bytes_per_pixel + 30e6


def test_black_and_white_png() -> None:
    bits = picture().convert("1")
    np.testing.assert_array_equal(
        decode(encoded(bits, "PNG"))[:, :, 1], np.asarray(bits).astype(np.uint8) * 255
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation: int) -> None:
    stored = decode(encoded(picture()))
    rotated = encoded(picture(), exif=with_orientation(orientation))
    np.testing.assert_array_equal(decode(rotated), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_left_when_it_is_to_be_ignored(orientation: int) -> None:
    rotated = encoded(picture(), exif=with_orientation(orientation))
    np.testing.assert_array_equal(
        decode(rotated, ignore_orientation=True), decode(encoded(picture()))
    )


def test_orientation_of_a_png_is_obeyed_and_ignored_alike() -> None:
    rotated = encoded(picture(), "PNG", exif=with_orientation(6))
    stored = np.asarray(picture())
    np.testing.assert_array_equal(decode(rotated), UPRIGHT[6](stored))
    np.testing.assert_array_equal(decode(rotated, ignore_orientation=True), stored)


def test_a_broken_exif_block_says_nothing_of_the_pixels() -> None:
    plain = encoded(picture())
    block = b"Exif\x00\x00" + b"\x99" * 50
    app1 = struct.pack(">BBH", 0xFF, 0xE1, len(block) + 2) + block
    np.testing.assert_array_equal(decode(plain[:2] + app1 + plain[2:]), decode(plain))


def test_one_row_over_the_pixel_limit_is_too_large() -> None:
    assert 9000 * 9943 > MAX_PIXELS > 9000 * 9942
    small = encoded(picture())
    with pytest.raises(ImageError, match=r"too large: 9000 x 9943 px"):
        decode(with_size(small, 9000, 9943))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty file", id="empty"),
        pytest.param(b"this is text\n", "not an image", id="text"),
        pytest.param(encoded(picture(300, 200))[:3000], "cannot be decoded", id="cut JPEG"),
        pytest.param(encoded(picture(300, 200), "PNG")[:3000], "cannot be decoded", id="cut PNG"),
        pytest.param(b"\xff\xd8\xff\xe0", "cannot be decoded|not an image", id="JPEG start"),
        pytest.param(with_size(encoded(picture()), 65500, 65500), "too large", id="JPEG bomb"),
        pytest.param(encoded(Image.new("1", (9500, 9500)), "PNG"), "too large", id="PNG bomb"),
    ],
)
def test_what_cannot_be_decoded_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(data)


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


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_half_a_jpeg_that_ends_as_a_whole_one_is_refused(mode: str) -> None:
    whole = encoded(Image.fromarray(photograph(np.random.default_rng(5), 300, 280)).convert(mode))
    decode(whole)
    with pytest.raises(ImageError, match=r"cannot be decoded: .*(truncated|remature)"):
        decode(whole[: len(whole) // 2] + b"\xff\xd9")


def test_bytes_behind_a_whole_jpeg_do_no_harm() -> None:
    whole = encoded(Image.fromarray(photograph(np.random.default_rng(6), 120, 90)))
    assert np.array_equal(decode(whole + b"\0" * 100), decode(whole))


def test_an_orientation_far_behind_a_long_comment_is_found() -> None:
    whole = encoded(
        Image.fromarray(photograph(np.random.default_rng(7), 120, 90)), exif=with_orientation(6)
    )
    comment = b"\xff\xfe" + (65_000).to_bytes(2, "big") + b" " * 64_998
    assert decode(whole[:2] + comment * 2 + whole[2:]).shape == (120, 90, 3)


def test_a_dark_image_of_16_bits_stays_dark() -> None:
    dark = Image.fromarray(np.full((20, 30), 200, np.uint16))
    assert decode(encoded(dark, "PNG")).max() == 1  # 200 of 65,535


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
