"""Images in half the bytes: 4:2:0, light for every pixel, colour for every second one each way.

Integers only, so what comes back is the same on every machine and device. Colour is lost where it
changes from pixel to pixel; a JPEG with 4:2:0 chroma, as most are, had lost it before.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.images import SIZE_PX, Pixels

HALF_PX = SIZE_PX // 2
SUBSAMPLED_BYTES = SIZE_PX * SIZE_PX + 2 * HALF_PX * HALF_PX  # half of three bytes a pixel
LUMA = (19595, 38470, 7471)  # times 2^16, as libjpeg has them: of red, green and blue
BLUE = (-11059, -21709, 32768)
RED = (32768, -27439, -5329)


def subsampled(pixels: Pixels) -> NDArray[np.uint8]:
    """(256, 256, 3) uint8 as luma (256, 256), then Cb and Cr (128, 128), in one row, uint8.

    The colours of JPEG (JFIF 1.02); colour is that of the mean of four pixels, rounded once.
    """
    wide = pixels.astype(np.int32)
    light = _weighted(wide, LUMA) + (1 << 15) >> 16
    four = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    # 128, and a half less one unit: the bluest of blues would come to 256
    centre = (128 << 18) + (1 << 17) - 1
    planes = [light, *(_weighted(four, colour) + centre >> 18 for colour in (BLUE, RED))]
    return np.concatenate([plane.ravel() for plane in planes]).astype(np.uint8)


def restored(stored: NDArray[np.uint8]) -> Pixels:
    """What is shown of `subsampled` images, (…, bytes) to (…, 256, 256, 3).

    Colour between its places is interpolated, 9:3:3:1 over the four nearest, as libjpeg does.
    """
    wide = stored.astype(np.int32)
    before, area = stored.shape[:-1], SIZE_PX * SIZE_PX
    light = wide[..., :area].reshape(*before, SIZE_PX, SIZE_PX)
    halves = wide[..., area:].reshape(*before, 2, HALF_PX, HALF_PX)
    near = np.arange(SIZE_PX) // 2
    far = np.clip(near + 2 * (np.arange(SIZE_PX) % 2) - 1, 0, HALF_PX - 1)
    down = 3 * halves[..., near, :] + halves[..., far, :]  # (…, 2, 256, 128)
    blue, red = np.moveaxis((3 * down[..., near] + down[..., far] + 8 >> 4) - 128, -3, 0)
    colours = (
        light + (91881 * red + 32768 >> 16),
        light + (-22554 * blue - 46802 * red + 32768 >> 16),
        light + (116130 * blue + 32768 >> 16),
    )
    return np.stack([np.clip(one, 0, 255) for one in colours], -1).astype(np.uint8)


def _weighted(pixels: NDArray[np.int32], weights: tuple[int, int, int]) -> NDArray[np.int32]:
    r, g, b = weights
    found: NDArray[np.int32] = r * pixels[..., 0] + g * pixels[..., 1] + b * pixels[..., 2]
    return found
