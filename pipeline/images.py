"""One original in, one 256x256 RGB image out, encoded and decoded again; or why it cannot be."""

import functools
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

SIZE_PX = 256  # the paper, section 2: shorter side 256, then the central 256 x 256
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs; 268 MB as RGB
STRIP_PIXELS = 1 << 20  # turned to RGB at a time where Pillow decodes
# What photographs come in; no formats that start other programs (EPS) or depend on the machine.
PILLOW_FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM", "TGA", "AVIF", "ICO",
)  # fmt: skip
ORIENTATION_TAG = 0x0112

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


def decode(data: bytes, *, ignore_orientation: bool = False) -> Pixels:
    """Any photograph as RGB, (height, width, 3), upright by its EXIF orientation unless ignored.

    Ordinary JPEGs go through simplejpeg in strict mode; whatever it refuses (CMYK, damage that
    libjpeg warns about, other formats) is judged by Pillow. The two are bit-equal where both
    decode. Memory, beside `data`: 3 bytes a pixel for JPEGs (twice that for progressive ones),
    4 to 7 for what Pillow decodes, 15 for WebP. Raises ImageError; MemoryError passes through, it
    says nothing of the image.
    """
    if not data:
        raise ImageError("empty file")
    if not data.startswith(b"\xff\xd8"):
        return _decode_with_pillow(data, ignore_orientation)
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS:
            raise ImageError(f"too large: {width} x {height} px, over {MAX_PIXELS} pixels")
        if colour not in ("YCbCr", "Gray", "RGB"):
            simplejpeg.decode_jpeg(data, "CMYK")  # only to be refused where it is cut off
            return _decode_with_pillow(data, ignore_orientation)
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ImageError:
        raise
    except ValueError as error:
        if "remature end" in str(error):  # Pillow would fill the rest with grey
            raise ImageError(f"cannot be decoded: truncated ({error})") from error
        return _decode_with_pillow(data, ignore_orientation)
    return pixels if ignore_orientation else _upright(pixels, _orientation(data))


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
    if side != SIZE_PX:
        filter_ = cv2.INTER_AREA if side > SIZE_PX else cv2.INTER_CUBIC
        resized = cv2.resize(square, (SIZE_PX, SIZE_PX), interpolation=filter_)
        return np.asarray(resized, np.uint8)
    return np.ascontiguousarray(square)


def _has_exif(jpeg: bytes) -> bool:
    """Whether a JPEG has an EXIF block; only its headers are looked at, not its pixels."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] != b"\xda":  # up to the scan
        if jpeg[at + 1 : at + 2] == b"\xe1" and jpeg[at + 4 : at + 10] == b"Exif\x00\x00":
            return True
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return False


def _orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1..8; 1 where it has none."""
    if not _has_exif(data):
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                return _orientation_of(image)
    except MemoryError:
        raise
    except Exception:  # what Pillow cannot open has no EXIF block that it could read
        return 1


def _orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1..8; 1 where it has none or a broken one."""
    try:
        found = image.getexif().get(ORIENTATION_TAG, 1)
        return found if found in range(1, 9) else 1
    except MemoryError:
        raise
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels turned as EXIF says (TIFF 6.0, tag 274), as a view."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decode_with_pillow(data: bytes, ignore_orientation: bool) -> Pixels:
    try:
        with warnings.catch_warnings():
            # Pillow warns of bombs and odd metadata; size is judged below, metadata is not kept.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(
                        f"too large: {image.width} x {image.height} px, over {MAX_PIXELS} pixels"
                    )
                image.load()
                orientation = 1 if ignore_orientation else _orientation_of(image)
                pixels = _rgb_pixels(image)
        return _upright(pixels, orientation)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything; whatever it is, it is the reason
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def _rgb_pixels(image: Image.Image) -> Pixels:
    """The pixels of a loaded image of any mode as RGB, a strip of rows at a time.

    Pillow holds up to four bytes a pixel; whole, every step to RGB would take as much again.
    """
    factor = _factor_to_bytes(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    num_rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        strip = image.crop((0, top, image.width, min(top + num_rows, image.height)))
        pixels[top : top + strip.height] = np.asarray(_to_rgb(strip, factor))
    return pixels


def _factor_to_bytes(image: Image.Image) -> float | None:
    """What brings values of more than 8 bits to 0..255; None where the mode has 8 bits.

    Integers up to 255 and floats up to 255 are taken for what they are, floats up to 1 for shares
    of white, more for 16 bits. ImageError where it is none of these: no scale would be right.
    """
    if image.mode.startswith("I;16"):
        return 1 / 257  # 65535 / 255
    if image.mode not in ("I", "F"):
        return None
    low, high = np.asarray(image.getextrema(), np.float64).tolist()
    if not 0 <= low <= high <= 65535:
        raise ImageError(
            f"cannot be decoded: values from {low:g} to {high:g}; expected 0..255, 0..65535 or, "
            "as floats, 0..1"
        )
    if image.mode == "F" and high <= 1:
        return 255.0
    return 1.0 if high <= 255 else 1 / 257


def _to_rgb(image: Image.Image, factor: float | None) -> Image.Image:
    """RGB of any mode: transparency over white, wide values scaled (Pillow alone would clip)."""
    if factor is not None:
        wide = np.asarray(image).astype(np.float64)
        if not np.isfinite(wide).all():
            raise ImageError("cannot be decoded: values that are no numbers")
        wide = wide / 257 if factor == 1 / 257 else wide * factor
        return Image.fromarray(np.rint(wide).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
