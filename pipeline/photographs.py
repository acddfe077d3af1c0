"""Any photograph as RGB pixels, within a bound of memory; or the reason why it cannot be."""

import io
import warnings
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.images import LARGE_PIXELS, ImageError, Pixels
from pipeline.rgb import divided, rgb_pixels

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs
MAX_DECODE_BYTES = 320_000_000  # for one photograph, its file included; beside a worker's 75 MB
ENOUGH_PX = 1024  # of a large image's shorter side stay at least: four times what is stored
# What photographs come in; no formats that start other programs (EPS) or depend on the machine.
PILLOW_FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM", "TGA", "AVIF", "ICO",
)  # fmt: skip
# Bytes a pixel that decoders take beside Pillow's own image, measured.
FLOAT_BYTES = 0.3  # beside a float image, as measured: its rows on their way to bytes
CODEC_BYTES = {"WEBP": 12, "AVIF": 10}
OPENCV_WEBP_BYTES = 7  # where OpenCV decodes one without alpha, all in all
ORIENTATION_TAG = 0x0112
APP1, START_OF_SCAN = 0xE1, 0xDA
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ITU-T T.81, table B.1
PROGRESSIVE_MARKERS = {0xC2, 0xC6, 0xCA, 0xCE}


def decode(data: bytes, *, ignore_orientation: bool = False) -> Pixels:
    """Any photograph as RGB, (height, width, 3), upright by its EXIF orientation unless ignored.

    Ordinary JPEGs go through simplejpeg in strict mode; whatever it refuses (CMYK, damage that
    libjpeg warns about, other formats) is judged by Pillow. The two are bit-equal where both
    decode. What has over LARGE_PIXELS comes divided by 2, 4 or 8 (JPEGs by libjpeg's smaller
    transforms, others by the mean of squares), its shorter side at least ENOUGH_PX still; what
    would even so take more than MAX_DECODE_BYTES is too large. Raises ImageError; MemoryError
    passes through, it says nothing of the image.
    """
    if not data:
        raise ImageError("empty file")
    if not data.startswith(b"\xff\xd8"):
        return _decode_with_pillow(data, ignore_orientation)
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        divisor = _divisor(height, width)
        at_least = {"min_height": -(-height // divisor), "min_width": -(-width // divisor)}
        _require_room(data, height, width, 3 / divisor**2 + _bytes_kept(data), divisor)
        if colour not in ("YCbCr", "Gray", "RGB"):
            simplejpeg.decode_jpeg(data, "CMYK", **at_least)  # to be refused where it is cut off
            return _decode_with_pillow(data, ignore_orientation)
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", **at_least)
    except ImageError:
        raise
    except ValueError as error:
        if "remature end" in str(error):  # Pillow would fill the rest with grey
            raise ImageError(f"cannot be decoded: truncated ({error})") from error
        return _decode_with_pillow(data, ignore_orientation)
    return pixels if ignore_orientation else _upright(pixels, _orientation(data))


def _divisor(height: int, width: int) -> int:
    """By what both sides of an image are divided while it is decoded: 1, 2, 4 or 8."""
    if height * width <= LARGE_PIXELS:
        return 1
    return max((k for k in (2, 4, 8) if min(height, width) >= k * ENOUGH_PX), default=1)


def _require_room(
    data: bytes, height: int, width: int, bytes_per_pixel: float, divisor: int
) -> None:
    """ImageError where an image has too many pixels, or would take too much memory.

    bytes_per_pixel: that decoding takes, what comes out included. The square of it that is kept
    may be copied, to be turned.
    """
    num_pixels = height * width
    if num_pixels > MAX_PIXELS:
        raise ImageError(f"too large: {width} x {height} px, over {MAX_PIXELS} pixels")
    square_px = min(height, width) / divisor
    needed_bytes = len(data) + num_pixels * bytes_per_pixel + 3 * square_px**2
    if needed_bytes > MAX_DECODE_BYTES:
        raise ImageError(
            f"too large: decoding its {width} x {height} px would take {needed_bytes / 1e6:.0f} "
            f"MB, over {MAX_DECODE_BYTES / 1e6:.0f} MB"
        )


def _segments(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """The header segments of a JPEG, its first scan's the last: marker, where its content lies."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and at + 4 <= len(jpeg):
        yield jpeg[at + 1], at + 4
        if jpeg[at + 1] == START_OF_SCAN:
            return
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")


def _bytes_kept(jpeg: bytes) -> float:
    """The coefficients that libjpeg keeps of a JPEG in several scans, in bytes a pixel.

    Two bytes each; none where one scan has all of them, as in most photographs. jpeg: one whose
    header libjpeg has read.
    """
    progressive, num_components, kept = False, 0, 0.0
    for marker, at in _segments(jpeg):
        if marker in FRAME_MARKERS:
            progressive, num_components = marker in PROGRESSIVE_MARKERS, jpeg[at + 5]
            factors = [divmod(jpeg[at + 7 + 3 * i], 16) for i in range(num_components)]
            most = max(across for across, _ in factors) * max(down for _, down in factors)
            kept = 2 * sum(across * down for across, down in factors) / most
        elif marker == START_OF_SCAN and num_components:
            return kept if progressive or jpeg[at] < num_components else 0.0
    return 8.0  # a header of another form: four components at full size


def _has_exif(jpeg: bytes) -> bool:
    """Whether a JPEG has an EXIF block; only its headers are looked at, not its pixels."""
    return any(
        marker == APP1 and jpeg[at : at + 6] == b"Exif\x00\x00" for marker, at in _segments(jpeg)
    )


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
            # Pillow warns of odd metadata, which is not kept, and of over MAX_PIXELS: size is
            # judged below as well, but an ICO is decoded as it is opened.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
                height, width = image.height, image.width
                divisor = _divisor(height, width)
                _require_room(data, height, width, _bytes_of_pillow(image, data, divisor), divisor)
                if _is_large_webp(image, divisor):
                    orientation = 1 if ignore_orientation else _orientation_of(image)
                    return _upright(_large_webp(data, divisor), orientation)
                if image.format == "JPEG":
                    image.draft(None, (width // divisor, height // divisor))
                image.load()  # which turns a TIFF
                orientation = 1 if ignore_orientation else _orientation_of(image)
                pixels = rgb_pixels(image, _divisor(image.height, image.width))
        return _upright(pixels, orientation)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too large: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything; whatever it is, it is the reason
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def _bytes_of_pillow(image: Image.Image, data: bytes, divisor: int) -> float:
    """What decoding an image takes: its decoder, Pillow and RGB, in bytes a pixel of the whole."""
    whole = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    if image.format == "JPEG":
        return (whole + 3) / divisor**2 + _bytes_kept(data)
    if _is_large_webp(image, divisor):
        return OPENCV_WEBP_BYTES
    beside = FLOAT_BYTES if image.mode == "F" else CODEC_BYTES.get(str(image.format), 0)
    if image.format == "JPEG2000":
        beside = 4 * len(image.getbands()) + 1
    if image.format == "TIFF" and _orientation_of(image) != 1:  # turned by Pillow
        beside = whole
    return whole + beside + 3 / divisor**2


def _is_large_webp(image: Image.Image, divisor: int) -> bool:
    """Whether OpenCV is to decode an image: the same bits in half of the memory."""
    still = image.format == "WEBP" and not getattr(image, "is_animated", False)
    return still and image.mode == "RGB" and divisor > 1


def _large_webp(data: bytes, divisor: int) -> Pixels:
    """The RGB pixels of a WebP without alpha, divided."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if whole is None:
        raise ImageError("cannot be decoded: damaged WebP")
    height, width = whole.shape[0] // divisor, whole.shape[1] // divisor
    return divided(np.asarray(whole[: height * divisor, : width * divisor], np.uint8), divisor)
