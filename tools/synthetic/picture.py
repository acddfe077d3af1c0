"""One file of the demo folder: what is drawn in it, how it is stored, and its bytes."""

import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image

from tools.synthetic.patterns import PATTERNS
from tools.synthetic.photograph import Photograph, take_photograph

Form = Literal["rgb", "grey", "cmyk", "png", "truncated", "web-page"]

CLASSES = sorted(PATTERNS)
SPLITS = ("train", "val")
# What real collections hold besides plain RGB JPEGs; every 40th picture of some classes.
ODD_FORMS: tuple[Form, ...] = ("grey", "cmyk", "png")
ODD_EVERY = 40
WEB_PAGE = b"<!DOCTYPE html>\n<title>404 Not Found</title>\n<p>This photograph is gone.</p>\n"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Picture `index`, 0-based, of a class in a split, and the form it is stored in."""

    split: str
    label: int
    index: int
    form: Form

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, found {self.split!r}")
        if not 0 <= self.label < len(CLASSES):
            raise ValueError(f"label must be 0..{len(CLASSES) - 1}, found {self.label}")
        if self.index < 0:
            raise ValueError(f"index must be at least 0, found {self.index}")

    @property
    def path(self) -> PurePosixPath:
        """Where the picture lies, relative to the demo folder."""
        name = CLASSES[self.label]
        return PurePosixPath(self.split, name, f"{name}_{self.index:05d}.JPEG")

    def draw(self, seed: int) -> bytes:
        """The bytes of the file: a function of the seed and of this picture alone."""
        if self.form == "web-page":
            return WEB_PAGE
        entropy = (seed, SPLITS.index(self.split), self.label, self.index)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        photograph = take_photograph(rng, PATTERNS[CLASSES[self.label]])
        return encode(photograph, self.form, quality=int(rng.integers(85, 96)))


def choose_form(split: str, label: int, index: int, num_pictures: int) -> Form:
    """The form of picture `index` of the `num_pictures` of a class: odd ones are rare.

    Two pictures of all are broken: the last ones of two classes of train.
    """
    if split == "train" and index == num_pictures - 1:
        if CLASSES[label] == "dots":
            return "truncated"
        if CLASSES[label] == "stars":
            return "web-page"
    if index % ODD_EVERY == 0 and label % 5 < len(ODD_FORMS):
        return ODD_FORMS[label % 5]
    return "rgb"


def encode(photograph: Photograph, form: Form, *, quality: int) -> bytes:
    """The photograph, (height, width, 3) RGB, as a file of that form; quality is JPEG's, 1..100.

    "truncated" is a JPEG that ends after half of its bytes.
    """
    image = Image.fromarray(photograph)
    buffer = io.BytesIO()
    if form == "png":
        image.save(buffer, "PNG")
        return buffer.getvalue()
    if form in ("grey", "cmyk"):
        image = image.convert("L" if form == "grey" else "CMYK")
    image.save(buffer, "JPEG", quality=quality)
    encoded = buffer.getvalue()
    return encoded[: len(encoded) // 2] if form == "truncated" else encoded
