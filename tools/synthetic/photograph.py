"""A picture of one class: a patterned thing on some ground, in some light, through some lens."""

import math

import cv2
import numpy as np
import numpy.typing as npt

from tools.synthetic.noise import Plane, fractal_noise
from tools.synthetic.palette import draw_contrasting, draw_surface
from tools.synthetic.patterns import Pattern

Photograph = npt.NDArray[np.uint8]  # (height, width, 3), RGB

MIN_SIDE_PX, MAX_SIDE_PX = 80, 900


def take_photograph(rng: np.random.Generator, pattern: Pattern) -> Photograph:
    """An RGB photograph of a thing that bears `pattern`; all else is drawn from `rng`."""
    height, width = draw_size(rng)
    x, y = _coordinates(height, width)
    outline = _outline(rng, x, y)
    depth = pattern(rng, *_pose(rng, x, y))
    short_px = min(height, width)
    figure = _cover(depth, short_px)
    thing = _cover(outline, short_px)
    ground = draw_surface(rng)
    paints = [
        surface.paint(rng, height, width)
        for surface in (draw_surface(rng), ground, draw_contrasting(rng, ground))
    ]
    colour = _mix(_mix(paints[1], paints[2], figure), paints[0], 1 - thing)
    light = _light(rng, x, y, outline, depth * thing)
    return _expose(rng, colour, light)


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width in pixels: mostly 240..500, a few smaller or larger, any aspect to 3:2."""
    kind = rng.random()
    low, high = (240, 340) if kind < 0.89 else (80, 240) if kind < 0.97 else (500, 700)
    short = round(rng.uniform(low, high))
    long = min(MAX_SIDE_PX, round(short * rng.uniform(1, 1.5)))
    return (short, long) if rng.random() < 0.6 else (long, short)


def _coordinates(height: int, width: int) -> tuple[Plane, Plane]:
    """x and y of every pixel in shorter sides from the centre, each of shape (height, width)."""
    short = min(height, width)
    across = (np.arange(width) - (width - 1) / 2) / short
    down = (np.arange(height) - (height - 1) / 2) / short
    x, y = np.meshgrid(across.astype(np.float32), down.astype(np.float32))
    return x, y


def _pose(rng: np.random.Generator, x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """The coordinates as seen on a turned, tilted and slightly crumpled plane."""
    height, width = x.shape
    angle = rng.uniform(-0.6, 0.6)
    near = 1 + rng.uniform(-0.25, 0.25) * x + rng.uniform(-0.25, 0.25) * y
    narrower = rng.uniform(0.85, 1.15)
    u: Plane = np.divide((math.cos(angle) * x - math.sin(angle) * y) * narrower, near)
    v: Plane = np.divide(math.sin(angle) * x + math.cos(angle) * y, near)
    crumple = rng.uniform(0, 0.025)
    u += crumple * fractal_noise(rng, height, width, num_octaves=2)
    v += crumple * fractal_noise(rng, height, width, num_octaves=2)
    return u + rng.uniform(-0.1, 0.1), v + rng.uniform(-0.1, 0.1)


def _outline(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """How far inside the thing each pixel lies, in shorter sides; four in ten fill the picture."""
    height, width = x.shape
    short = min(height, width)
    half_width = rng.uniform(0.4, 0.55) * width / short
    half_height = rng.uniform(0.4, 0.55) * height / short
    corner = rng.uniform(2, 6)
    a = np.abs(x - rng.uniform(-0.06, 0.06)) / half_width
    b = np.abs(y - rng.uniform(-0.06, 0.06)) / half_height
    ragged = rng.uniform(0, 0.035) * fractal_noise(rng, height, width, num_octaves=5)
    beyond = 1 if rng.random() < 0.4 else 0
    radius = min(half_width, half_height)
    depth: Plane = radius * (1 - (a**corner + b**corner) ** (1 / corner)) + ragged + beyond
    return depth


def _cover(depth: Plane, short_px: int) -> Plane:
    """The share of each pixel, 0..1, that a figure of this depth covers; its edge is 1.5 px."""
    share: Plane = np.clip(depth * (short_px / 1.5) + 0.5, 0, 1)
    return share


def _mix(first: Plane, second: Plane, share: Plane) -> Plane:
    """Two (height, width, 3) pictures mixed; `share`, (height, width), is the second's, 0..1."""
    return np.asarray(cv2.blendLinear(first, second, 1 - share, share), np.float32)


def _light(
    rng: np.random.Generator, x: Plane, y: Plane, outline: Plane, depth: Plane
) -> Plane:
    """Light on every pixel, about 1: lamp, vignette, relief, and the shadow of the thing."""
    height, width = x.shape
    angle = rng.uniform(0, 2 * math.pi)
    lamp_x, lamp_y = math.cos(angle), math.sin(angle)
    light = 1 + rng.uniform(0, 0.4) * (lamp_x * x + lamp_y * y)
    light -= rng.uniform(0, 0.35) * (x * x + y * y)
    light += rng.uniform(0, 0.1) * fractal_noise(rng, height, width, num_octaves=2)
    bulge = rng.uniform(0.02, 0.12) * np.sqrt(np.clip(outline, 0, 0.3))
    bevel = rng.uniform(0.004, 0.02)
    relief = np.clip(depth, 0, bevel) * rng.uniform(0.2, 0.7) + bulge
    # Sobel's kernel adds up eight differences over two pixels: slope is per shorter side.
    slope = min(height, width) / 8
    light -= lamp_x * slope * cv2.Sobel(relief, cv2.CV_32F, 1, 0)
    light -= lamp_y * slope * cv2.Sobel(relief, cv2.CV_32F, 0, 1)
    away_px = rng.uniform(0.01, 0.05) * min(height, width)
    shift = np.array([[1, 0, -lamp_x * away_px], [0, 1, -lamp_y * away_px]], np.float32)
    shadow = cv2.warpAffine(outline, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
    dark = np.clip(1 + shadow / rng.uniform(0.04, 0.12), 0, 1) * (outline < 0)
    return np.asarray(np.clip(light, 0.25, 1.8) * (1 - rng.uniform(0.3, 0.6) * dark), np.float32)


def _expose(rng: np.random.Generator, colour: Plane, light: Plane) -> Photograph:
    """What the sensor records: a slightly soft picture with grain, clipped to 0..255."""
    height, width = light.shape
    softness_px = rng.uniform(0.3, 1.1) * max(1.0, min(height, width) / 350)
    lit = cv2.multiply(colour, cv2.merge([light, light, light]))
    soft = cv2.GaussianBlur(lit, (0, 0), softness_px)
    grain = rng.standard_normal((height, width), np.float32) * np.float32(rng.uniform(1, 8))
    recorded = cv2.add(soft, cv2.merge([grain, grain, grain]), dtype=cv2.CV_8U)
    return np.asarray(recorded, np.uint8)
