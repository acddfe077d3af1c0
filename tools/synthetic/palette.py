"""Colours with the statistics of photographs, the same for every class.

Colours are drawn and mixed along three axes: brightness, blue-yellow and green-magenta, the
directions in which the pixels of natural scenes vary independently (Ruderman, Cronin and Chiao,
"Statistics of cone responses to natural images", 1998).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from tools.synthetic.noise import Plane, coarse_noise, enlarge

Vector = npt.NDArray[np.float32]  # (3,): brightness, blue-yellow, green-magenta; 0..255 units

MIDDLE_RGB = np.array([124, 117, 104], np.float32)
AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32)
AXES /= np.linalg.norm(AXES, axis=1, keepdims=True)
SPREAD = np.array([105, 42, 20], np.float32)  # Deviation of a surface's colour along each axis.
MIN_CONTRAST = 110.0  # Between figure and ground, in 0..255 units along the axes.


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A material: its colour and how much its stains stray from it, along the axes."""

    colour: Vector
    stain: Vector
    num_octaves: int

    def __post_init__(self) -> None:
        for name in ("colour", "stain"):
            shape = getattr(self, name).shape
            if shape != (3,):
                raise ValueError(f"{name} must have shape (3,), found {shape}")

    def paint(self, rng: np.random.Generator, height: int, width: int) -> Plane:
        """The material filling a picture: RGB in 0..255 units, not clipped, (height, width, 3)."""
        strays = coarse_noise(
            rng, height, width, num_octaves=self.num_octaves, planes=(len(AXES),)
        )
        middle = self.colour @ AXES + MIDDLE_RGB
        to_rgb = np.column_stack([(self.stain[:, np.newaxis] * AXES).T, middle])  # (3, 3 + 1)
        rgb = np.asarray(cv2.transform(strays, to_rgb), np.float32)
        return enlarge(rgb, height, width)


def draw_surface(rng: np.random.Generator) -> Surface:
    """A material of any colour a photograph may hold."""
    colour = np.clip(rng.standard_normal(3), -1.9, 1.9) * SPREAD
    stain = rng.uniform(0.12, 0.55, 3) * SPREAD
    return Surface(
        colour=colour.astype(np.float32), stain=stain.astype(np.float32),
        num_octaves=int(rng.integers(4, 8)),
    )


def draw_contrasting(rng: np.random.Generator, other: Surface) -> Surface:
    """A material that the eye can tell from `other`."""
    while True:
        surface = draw_surface(rng)
        if np.linalg.norm(surface.colour - other.colour) >= MIN_CONTRAST:
            return surface
