"""Ink, type and tiles that the drawn sheets share."""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PAPER = (24, 26, 30)
INK = (238, 238, 236)
QUIET = (168, 172, 180)
FAINT = (72, 77, 86)
GAP_PX = 6


def type_of(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The face that comes with Pillow, so that a sheet looks the same on every machine."""
    return ImageFont.load_default(size_px)


def shown(pixels: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels in 0..255 units as a screen shows them: rounded and clamped."""
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def tile(pixels: NDArray[np.uint8], side_px: int) -> Image.Image:
    """An image (height, width, 3) as a square tile."""
    return Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.LANCZOS)


def label(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width_px: int, size_px: int = 12
) -> None:
    """A word on a picture, at most that wide, on a ground of its own."""
    face = type_of(size_px)
    word = fitting(text, width_px, size_px)
    left, top, right, bottom = draw.textbbox(place, word, face)
    draw.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=PAPER)
    draw.text(place, word, INK, face)


def fitting(text: str, width_px: int, size_px: int) -> str:
    """The text on one line of printable characters, its end left out where it is too long."""
    face = type_of(size_px)
    word = "".join(one if one.isprintable() else " " for one in text).strip()
    if face.getlength(word) <= width_px:
        return word
    ends = [f"{word[:n]}…" for n in range(len(word))]
    fits = bisect_right(ends, float(width_px), key=lambda end: float(face.getlength(end)))
    return f"{word[: max(0, fits - 1)].rstrip()}…"
