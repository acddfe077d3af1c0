"""An opened image of any mode as RGB, a strip of rows at a time."""

import cv2
import numpy as np
from PIL import Image

from pipeline.images import ImageError, Pixels

STRIP_PIXELS = 1 << 20  # turned to RGB at a time


def rgb_pixels(image: Image.Image, divisor: int) -> Pixels:
    """The pixels of a loaded image, (height // divisor, width // divisor, 3) RGB.

    Transparency is laid over white, values of more than 8 bits are scaled. ImageError where they
    have no scale that would be right.
    Pillow holds up to four bytes a pixel; whole, every step to RGB would take as much again.
    """
    factor = _factor_to_bytes(image)
    height, width = image.height // divisor, image.width // divisor
    pixels = np.empty((height, width, 3), np.uint8)
    num_rows = max(1, STRIP_PIXELS // (image.width * divisor))
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        strip = image.crop((0, top * divisor, width * divisor, bottom * divisor))
        pixels[top:bottom] = divided(np.asarray(_to_rgb(strip, factor)), divisor)
    return pixels


def divided(pixels: Pixels, divisor: int) -> Pixels:
    """The rounded mean of each divisor x divisor pixels; the sides are multiples of it."""
    height, width = pixels.shape[0] // divisor, pixels.shape[1] // divisor
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


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
