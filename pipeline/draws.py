"""The random numbers of a step (crop, flip and lighting): pure functions of (seed, epoch, step).

Drawn for the whole global batch, of which each rank uses its slice, so the pixels of a step depend
neither on the number of GPUs nor on threads.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.images import SIZE_PX

CROP_PX = 224  # the paper, section 4.1
MAX_OFFSET_PX = SIZE_PX - CROP_PX  # crop offsets are 0..32, both included
ALPHA_STD = 0.1  # the paper, section 4.1
CROP_TAG = 0x63726F70  # "crop"
LIGHTING_TAG = 0x6C69676874  # "light"


@dataclass(frozen=True)
class Draws:
    """crop: int32 (N, 3) = x, y offset in 0..32 px, flip 0 or 1. alpha: float64 (N, 3)."""

    crop: NDArray[np.int32]
    alpha: NDArray[np.float64]

    def part(self, first: int, last: int) -> "Draws":
        """The draws of the batch's images [first, last)."""
        return Draws(self.crop[first:last], self.alpha[first:last])

    def unlit(self) -> "Draws":
        """The same crops and flips without lighting."""
        return Draws(self.crop, np.zeros_like(self.alpha))


def draws(seed: int, epoch: int, step: int, batch_size: int, images_per_crop: int = 1) -> Draws:
    """A training step's draws for a global batch of `batch_size` images.

    Offsets uniform over 0..32, flip with probability 1/2, alpha ~ N(0, 0.1**2) for each component.
    Runs of `images_per_crop` images share offsets and flip: 32 in the 2012 code (convdata.py).
    """
    cropping = _generator(seed, CROP_TAG, epoch, step)
    num_crops = -(-batch_size // images_per_crop)
    crop = np.empty((num_crops, 3), np.int32)
    crop[:, :2] = cropping.integers(0, MAX_OFFSET_PX + 1, (num_crops, 2))
    crop[:, 2] = cropping.integers(0, 2, num_crops)
    crop = crop.repeat(images_per_crop, axis=0)[:batch_size]
    alpha = _generator(seed, LIGHTING_TAG, epoch, step).standard_normal((batch_size, 3))
    return Draws(crop, alpha * ALPHA_STD)


def centre_draws(batch_size: int) -> Draws:
    """Validation's: the centre crop, no flip, no lighting."""
    crop = np.zeros((batch_size, 3), np.int32)
    crop[:, :2] = MAX_OFFSET_PX // 2
    return Draws(crop, np.zeros((batch_size, 3)))


def lighting_offsets(
    alpha: NDArray[np.float64],
    eigenvectors: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> NDArray[np.float32]:
    """What lighting adds to every pixel of an image, float32 (N, 3), R, G, B in 0..255 units.

    alpha: (N, 3). eigenvectors: (3, 3), one per column. scale: (3,), the strength along each: the
    standard deviations sqrt(lambda) of the 2012 code, or the lambda of the paper's text.
    """
    strength = alpha * scale  # strength: (image, component)
    # Sums of three written out: a matrix product may round otherwise for another batch size.
    offsets = sum(strength[:, i, None] * eigenvectors[:, i] for i in range(3))
    return np.asarray(offsets, np.float32)


def lighting_scale(eigenvalues: NDArray[np.float64], lighting: str) -> NDArray[np.float64]:
    """The strength along each component, (3,): "std" sqrt(lambda), "variance" lambda."""
    assert lighting in ("std", "variance")
    return np.sqrt(eigenvalues) if lighting == "std" else eigenvalues


def _generator(seed: int, tag: int, epoch: int, step: int) -> np.random.Generator:
    key = np.array([seed, tag], np.uint64)  # NumPy would take a list through float64
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, epoch]))
