"""Any photograph becomes RGB within a bound of memory, or the reason is said."""

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from pipeline.images import ImageError, Pixels
from pipeline.photographs import MAX_PIXELS, decode
from tests.conftest import encoded, photograph, with_orientation
from tests.pipeline.conftest import by_pillow, picture, segments

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
    at = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


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


JFIF = np.array(  # Y, Cb, Cr of R, G, B: ITU-T T.871
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def ycck_jpeg(inks: Pixels) -> bytes:
    """Inks C, M, Y, K, (height, width, 4), inverted and with YCbCr for CMY, as Adobe stores them.

    Of its four components the fourth is 255 - K; the others are YCbCr of 255 minus what is
    stored for CMY, which is the inks themselves. Pillow inverts what it is given as CMYK.
    """
    ycc = inks[:, :, :3] @ JFIF.T + [0, 128, 128]
    stored = np.dstack([255 - np.clip(np.rint(ycc), 0, 255), inks[:, :, 3]]).astype(np.uint8)
    data = encoded(Image.fromarray(stored, "CMYK"), quality=98)
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0  # the transform of segment APP14: none
    return data[: adobe + 11] + b"\x02" + data[adobe + 12 :]


def test_ycck_keeps_its_colours() -> None:
    rng = np.random.default_rng(0)
    inks = rng.integers(0, 256, (5, 7, 4), np.uint8).repeat(8, 0).repeat(8, 1)
    light = 255 - inks.astype(float)
    expected = light[:, :, :3] * light[:, :, 3:] / 255
    assert np.abs(decode(ycck_jpeg(inks)) - expected).max() <= 4


PEAK_OF = """
import re, sys
from pathlib import Path
from pipeline.engines import run_tasks
from pipeline.images import ImageFormat
from pipeline.plan import Settings, plan
from pipeline.prepare import prepare
from pipeline.sources import open_source

source, out = Path(sys.argv[1]), Path(sys.argv[2])
settings = Settings(image_format=ImageFormat(encoding=sys.argv[3]))
engine = lambda shards: run_tasks(shards, 1, lambda done: None)
split = prepare(open_source(source), out, settings, engine).dataset.split("train")
assert (split.written, split.quarantined) == (2, 0), split
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""
MILLION = 1_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(
    ("mode", "image_format", "options", "num_pixels"),
    [
        pytest.param("RGB", "JPEG", {}, 89 * MILLION, id="JPEG"),
        pytest.param("RGB", "JPEG", {"exif": with_orientation(6)}, 89 * MILLION, id="turned JPEG"),
        pytest.param("RGB", "JPEG", {"progressive": True}, 89 * MILLION, id="progressive JPEG"),
        pytest.param("CMYK", "JPEG", {"progressive": True}, 36 * MILLION, id="progressive CMYK"),
        pytest.param("P", "PNG", {}, 89 * MILLION, id="palette PNG"),
        pytest.param("I;16", "PNG", {}, 89 * MILLION, id="16-bit PNG"),
        pytest.param("RGBA", "PNG", {}, 74 * MILLION, id="RGBA PNG"),
        pytest.param("RGB", "BMP", {}, 43 * MILLION, id="BMP"),
        pytest.param("F", "TIFF", {}, 36 * MILLION, id="float TIFF"),
        pytest.param("RGB", "WEBP", {"method": 0}, 42 * MILLION, id="WebP"),
        pytest.param("RGBA", "WEBP", {"method": 0}, 18 * MILLION, id="RGBA WebP"),
        pytest.param("RGB", "JPEG2000", {}, 13 * MILLION, id="JPEG 2000"),
        pytest.param("P", "GIF", {}, 89 * MILLION, id="GIF"),
        pytest.param("RGB", "AVIF", {"speed": 10}, 18 * MILLION, id="AVIF"),
    ],
)
def test_the_largest_image_of_each_kind_takes_a_worker_less_than_400_mb(
    tmp_path: Path, mode: str, image_format: str, options: dict[str, Any], num_pixels: int
) -> None:
    """Of the whole way of an image into a shard: read, decoded, encoded, verified, summed."""
    if image_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    side_px = int(num_pixels**0.5)
    image = Image.new(mode, (side_px, side_px), 7 if mode in ("P", "I;16", "F") else "teal")
    options = {"compress_level": 1} if image_format == "PNG" else options
    folder = tmp_path / "source/train/only"
    folder.mkdir(parents=True)
    (folder / "large.jpg").write_bytes(encoded(image, image_format, **options))
    (folder / "small.jpg").write_bytes(encoded(picture()))
    encoding = "raw" if image_format == "BMP" else "jpeg"
    command = [sys.executable, "-c", PEAK_OF, str(folder.parents[1]), str(tmp_path / "out")]
    command.append(encoding)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 400 * MILLION


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_a_large_jpeg_comes_divided_bit_equal_to_pillow(
    monkeypatch: pytest.MonkeyPatch, divisor: int, options: dict[str, Any]
) -> None:
    monkeypatch.setattr("pipeline.photographs.LARGE_PIXELS", 1000)
    monkeypatch.setattr("pipeline.photographs.ENOUGH_PX", 150 // divisor)
    data = encoded(picture(203, 157), **options)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (203 // divisor, 157 // divisor))
        expected = np.asarray(image)
    assert expected.shape[:2] == (-(-157 // divisor), -(-203 // divisor))
    np.testing.assert_array_equal(decode(data), expected)
    turned = encoded(picture(203, 157), exif=with_orientation(6), **options)
    np.testing.assert_array_equal(decode(turned), UPRIGHT[6](expected))


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_another_large_image_comes_as_the_mean_of_squares(
    monkeypatch: pytest.MonkeyPatch, divisor: int, image_format: str
) -> None:
    exif = {} if image_format == "BMP" else {"exif": with_orientation(6)}
    data = encoded(picture(203, 157), image_format, **exif)
    height, width = 157 // divisor, 203 // divisor
    whole = by_pillow(data)[: height * divisor, : width * divisor].astype(np.float64)
    expected = whole.reshape(height, divisor, width, divisor, 3).mean((1, 3))
    monkeypatch.setattr("pipeline.photographs.LARGE_PIXELS", 1000)
    monkeypatch.setattr("pipeline.photographs.ENOUGH_PX", 150 // divisor)
    monkeypatch.setattr("pipeline.rgb.STRIP_PIXELS", 1700)
    found = decode(data, ignore_orientation=True)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 0.5
    np.testing.assert_array_equal(decode(data), UPRIGHT[6](found) if exif else found)


def test_of_a_large_image_enough_is_left_to_be_made_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.photographs.LARGE_PIXELS", 1000)
    monkeypatch.setattr("pipeline.photographs.ENOUGH_PX", 30)
    for image_format in ("JPEG", "PNG"):
        assert decode(encoded(picture(400, 59), image_format)).shape == (59, 400, 3)
        assert decode(encoded(picture(400, 60), image_format)).shape == (30, 200, 3)


def test_what_would_take_too_much_memory_is_too_large() -> None:
    in_one_scan = with_size(encoded(picture(), subsampling=0), 8000, 7000)
    with pytest.raises(ImageError, match="cannot be decoded: truncated"):
        decode(in_one_scan)
    in_many = encoded(picture(), subsampling=0, progressive=True)
    with pytest.raises(ImageError, match=r"8000 x 7000 px would take 3\d\d MB, over 320 MB"):
        decode(with_size(in_many, 8000, 7000))
    with pytest.raises(ImageError, match=r"too large: decoding its 8900 x 8900 px"):
        decode(encoded(Image.new("RGB", (8900, 8900)), "PNG", compress_level=1))


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


def test_a_bomb_inside_an_icon_is_refused_before_it_is_decoded() -> None:
    whole = encoded(Image.new("1", (9500, 9500)), "PNG")
    bomb = whole[:-1000]  # decoding it would end in another error
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(bomb), 22)
    with pytest.raises(ImageError, match="too large: .*90250000 pixels"):
        decode(struct.pack("<HHH", 0, 1, 1) + entry + bomb)


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
