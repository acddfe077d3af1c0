"""Smooth random fields: what clouds, stains, soil and uneven light have in common."""

import cv2
import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]


def fractal_noise(
    rng: np.random.Generator, height: int, width: int, *, num_octaves: int
) -> Plane:
    """A random field of about zero mean and unit deviation, float32, shape (height, width)."""
    return enlarge(coarse_noise(rng, height, width, num_octaves=num_octaves), height, width)


def coarse_noise(
    rng: np.random.Generator, height: int, width: int, *, num_octaves: int,
    planes: tuple[int, ...] = (),
) -> Plane:
    """Independent random fields for a picture of height x width, at the finest grain they have.

    Each is the sum of `num_octaves` smooth fields of equal strength and halving grain; the
    coarsest has two grains along the shorter side. Equal strength in every octave is the 1/f
    amplitude spectrum of natural scenes (Field, "Relations between the statistics of natural
    images and the response properties of cortical cells", 1987).

    Returns float32, shape (rows, columns, *planes), mean about 0, deviation about 1 when enlarged.
    """
    if num_octaves < 1:
        raise ValueError(f"num_octaves must be at least 1, found {num_octaves}")
    total: Plane | None = None
    for octave in range(num_octaves):
        grain_px = min(height, width) / 2 ** (octave + 1)
        rows, columns = (max(2, round(side / grain_px) + 1) for side in (height, width))
        grains = rng.standard_normal((rows, columns, *planes), np.float32)
        total = grains if total is None else grains + _cubic(total, rows, columns)
    assert total is not None
    # Interpolating between independent grains costs a tenth of the deviation.
    return total / np.float32(0.9 * num_octaves**0.5)


def enlarge(planes: Plane, height: int, width: int) -> Plane:
    """(rows, columns, ...) interpolated smoothly to (height, width, ...).

    Cubic up to a quarter of the size and linear from there: the eye sees no difference, and cubic
    to the full size takes five times as long.
    """
    rows, columns = planes.shape[:2]
    quarter = _cubic(planes, max(rows, height // 4), max(columns, width // 4))
    return np.asarray(cv2.resize(quarter, (width, height), interpolation=cv2.INTER_LINEAR))


def _cubic(planes: Plane, height: int, width: int) -> Plane:
    return np.asarray(cv2.resize(planes, (width, height), interpolation=cv2.INTER_CUBIC))
