"""Ink, type and tiles that the drawn sheets share."""

import re
import unicodedata
from bisect import bisect_right
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PAPER = (24, 26, 30)
INK = (238, 238, 236)
QUIET = (168, 172, 180)
FAINT = (72, 77, 86)
GAP_PX = 6
NO_CHARACTER = "\U0010ffff"  # what a face lacks is drawn as this is: an empty box
LATIN = re.compile(r"LATIN (SMALL|CAPITAL) LETTER ([A-Z]{1,2})( WITH .*)?")


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


def legible(text: str, otherwise: str) -> str:
    """The text in characters that the sheets' face has; `otherwise` where it loses every letter.

    Letters lose their accents, and what is lacking still becomes an ellipsis: the face has hardly
    more than ASCII.
    """
    plain = unicodedata.normalize("NFKD", "".join(map(_without_accent, text)))
    marks = (one for one in plain if not unicodedata.combining(one))
    word = re.sub("\0+", "…", "".join(one if _has(one) else "\0" for one in marks))
    return word if any(one.isalnum() for one in word) else otherwise


def _without_accent(character: str) -> str:
    """ß as ss, ø as o, æ as ae: Latin letters that Unicode does not take apart."""
    if character == "ß":
        return "ss"
    found = LATIN.fullmatch(unicodedata.name(character, ""))
    if not found:
        return character
    return found[2] if found[1] == "CAPITAL" else found[2].lower()


@cache
def _has(character: str) -> bool:
    """Whether the face draws a picture of this character."""
    face = type_of(12)
    if not character.isprintable():
        return True  # `fitting` makes it a space
    return bytes(face.getmask(character)) != bytes(face.getmask(NO_CHARACTER))
