"""What is stored: one 256x256 RGB image, as JPEG or raw; its settings, and its decoding again."""

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import features

SIZE_PX = 256  # the paper, section 2: shorter side 256, then the central 256 x 256
MAX_FLOAT_SIDE_PX = 1024  # of what is shrunk as float32: 13 MB
LARGE_PIXELS = 1 << 24  # an original of more is made smaller while it is decoded; photographs.py
Pixels = NDArray[np.uint8]  # (height, width, 3)


def _npy_header() -> bytes:
    pixels = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()[: -pixels.nbytes]


RAW_HEADER = _npy_header()  # what every raw image begins with: 128 bytes, then the pixels


@functools.cache
def _codec_versions() -> dict[str, str | None]:
    """The libraries whose versions decide pixels and bytes; looked up once, asked per shard."""
    return {
        "opencv": cv2.__version__,
        "simplejpeg": simplejpeg.__version__,
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
    }


class ImageError(ValueError):
    """An original that cannot become a sample; its text is the reason, for people."""


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """How images are stored: `encoding` jpeg or raw, JPEG `quality` 1..100, EXIF obeyed or not."""

    encoding: str = "jpeg"
    quality: int = 90
    ignore_orientation: bool = False

    def __post_init__(self) -> None:
        if self.encoding not in ("jpeg", "raw"):
            raise ValueError(f"encoding must be jpeg or raw, not {self.encoding!r}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be within 1..100, not {self.quality}")

    def settings(self) -> dict[str, Any]:
        """All that decides the bytes of a stored image, JSON-able, library versions included."""
        chosen: dict[str, Any] = {
            "size_px": SIZE_PX,
            "encoding": self.encoding,
            "orientation": "ignored" if self.ignore_orientation else "exif",
            "resize": "central square; area average to shrink, bicubic to enlarge",
            "large": f"over {LARGE_PIXELS} pixels: divided by 2, 4 or 8 while decoding",
            "versions": dict(_codec_versions()),
        }
        if self.encoding == "jpeg":
            chosen["jpeg"] = {
                "quality": self.quality,
                "subsampling": "4:2:0",
                "huffman": "optimised",
                "progressive": False,
            }
        return chosen

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The format of which `settings` (or a dataset.json) tells, with this machine's codecs."""
        return cls(
            encoding=settings["encoding"],
            quality=settings.get("jpeg", {}).get("quality", cls.quality),
            ignore_orientation=settings["orientation"] == "ignored",
        )


def decode_stored(encoded: bytes | memoryview) -> Pixels:
    """The pixels of a stored image, (256, 256, 3) RGB; ImageError where they are not that."""
    if encoded[:1] == RAW_HEADER[:1]:
        if encoded[: len(RAW_HEADER)] != RAW_HEADER:
            raise ImageError("raw image has another header than was written")
        pixels = np.frombuffer(encoded, np.uint8, offset=len(RAW_HEADER))
        if pixels.size != SIZE_PX * SIZE_PX * 3:
            raise ImageError(f"raw image has {pixels.size} bytes of pixels, not 256 x 256 x 3")
        pixels = pixels.reshape(SIZE_PX, SIZE_PX, 3)
    else:
        try:
            pixels = simplejpeg.decode_jpeg(encoded, "RGB")
        except ValueError as error:
            raise ImageError(f"damaged JPEG: {error}") from error
    if pixels.shape != (SIZE_PX, SIZE_PX, 3) or pixels.dtype != np.uint8:
        raise ImageError(f"stored image is {pixels.shape} {pixels.dtype}, not (256, 256, 3) uint8")
    return pixels


def encode(pixels: Pixels, image_format: ImageFormat) -> bytes:
    """(256, 256, 3) RGB as baseline 4:2:0 JPEG without metadata, or as a .npy file."""
    if image_format.encoding == "raw":
        buffer = io.BytesIO()
        np.save(buffer, pixels, allow_pickle=False)
        return buffer.getvalue()
    options = [
        cv2.IMWRITE_JPEG_QUALITY, image_format.quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_OPTIMIZE, 1,
        cv2.IMWRITE_JPEG_PROGRESSIVE, 0,
    ]  # fmt: skip
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    assert done
    return encoded.tobytes()


def fit(pixels: Pixels) -> Pixels:
    """Any (height, width, 3) as (256, 256, 3): shorter side to 256, then the central square.

    The crop comes first, so that only kept pixels are resized: by area average to shrink (an
    antialiasing filter), bicubic to enlarge.
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side > SIZE_PX:
        return _shrunk(square)
    if side < SIZE_PX:
        resized = cv2.resize(square, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC)
        return np.asarray(resized, np.uint8)
    return np.ascontiguousarray(square)


def _shrunk(square: Pixels) -> Pixels:
    """A larger square as (256, 256, 3), by area average.

    OpenCV sums areas in float32, from floats 1.2 times as fast as from bytes, with the same
    result; but not where its sides are a multiple of 256, which it averages in integers.
    """
    side = len(square)
    if side % SIZE_PX == 0 or side > MAX_FLOAT_SIDE_PX:
        resized = cv2.resize(square, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, np.uint8)
    floats = square.astype(np.float32)
    averages = cv2.resize(floats, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.convertScaleAbs(averages), np.uint8)  # which rounds
