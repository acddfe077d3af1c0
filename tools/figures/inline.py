"""Pictures as part of a page: data URLs."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

JPEG_QUALITY = 85


def photograph(pixels: NDArray[np.uint8], side_px: int) -> str:
    """A JPEG of at most side_px x side_px, of uint8 (height, width, 3), in its proportions."""
    image = Image.fromarray(pixels)
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return _url("image/jpeg", buffer.getvalue())


def drawing(pixels: NDArray[np.uint8]) -> str:
    """A PNG of the exact pixels, uint8 (height, width, 3 or 4)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return _url("image/png", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
