"""The classes: ten ways to divide the plane into figure and ground.

A pattern takes a generator and the coordinates x, y of every pixel (float32, shape (height,
width), in shorter sides of the picture, the origin near its centre) and returns how far inside the
figure each pixel lies (float32, same shape and unit; negative on the ground). Period, proportions
and position are drawn from the generator; colour, light and pose are not a pattern's business.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from tools.synthetic.noise import Plane

Pattern = Callable[[np.random.Generator, Plane, Plane], Plane]

TABLE_SIDE = 32  # The random numbers of a lattice repeat after so many cells.
CANVAS_PX = 320  # Side of the canvas branches are drawn on.


def _from_middle(t: npt.NDArray[np.floating]) -> Plane:
    """Distance from the middle of the unit cell that t lies in, 0..0.5."""
    distance: Plane = np.abs(t - np.floor(t) - np.float32(0.5))
    return distance


def _bands(rng: np.random.Generator, t: npt.NDArray[np.floating], period: float) -> Plane:
    """Bands along the lines of equal t; t is counted in periods."""
    duty = rng.uniform(0.35, 0.65)
    return period * (duty / 2 - _from_middle(t))


def _around(rng: np.random.Generator, x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """Radius and angle about a centre near the origin."""
    x = x - rng.uniform(-0.15, 0.15)
    y = y - rng.uniform(-0.15, 0.15)
    return np.hypot(x, y), np.arctan2(y, x)


def _lattice(
    rng: np.random.Generator, x: Plane, y: Plane, jitter: float
) -> tuple[Plane, Plane, Plane, Plane]:
    """Coordinates from the centre of each unit cell, and two random numbers 0..1 per cell."""
    row = np.floor(y).astype(np.int32)
    x = x + np.float32(rng.choice([0.0, 0.5])) * (row % 2).astype(np.float32)
    column = np.floor(x).astype(np.int32)
    table = rng.random((4, TABLE_SIDE, TABLE_SIDE), np.float32)
    across, down, first, second = table[:, row % TABLE_SIDE, column % TABLE_SIDE]
    u = x - column.astype(np.float32) - 0.5 - jitter * (across - 0.5)
    v = y - row.astype(np.float32) - 0.5 - jitter * (down - 0.5)
    return u, v, first, second


def bricks(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Oblong stones in rows, each row shifted against the one below."""
    tall = rng.uniform(0.09, 0.17)
    wide = tall * rng.uniform(1.8, 2.8)
    joint = tall * rng.uniform(0.05, 0.1)
    row = np.floor(y / tall)
    shift = np.float32(rng.uniform(0.35, 0.5)) * (row % 2)
    to_side = wide * (0.5 - _from_middle(x / wide + shift))
    to_bed = tall * (0.5 - _from_middle(y / tall))
    depth: Plane = np.minimum(to_side, to_bed) - joint
    return depth


def checks(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A chessboard."""
    period = rng.uniform(0.16, 0.36)
    across = 0.25 - _from_middle(x / period)
    down = 0.25 - _from_middle(y / period)
    depth: Plane = period * np.sign(across * down) * np.minimum(np.abs(across), np.abs(down))
    return depth


def dots(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Discs on a lattice, as on printed cloth."""
    pitch = rng.uniform(0.12, 0.26)
    u, v, size, _ = _lattice(rng, x / pitch, y / pitch, jitter=0.12)
    radius = rng.uniform(0.27, 0.36) + 0.08 * (size - 0.5)
    return pitch * (radius - np.hypot(u, v))


def honeycomb(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Walls between six-sided cells."""
    pitch = rng.uniform(0.13, 0.28)
    tall = math.sqrt(3)
    u, v = x / pitch, y / pitch
    # Two rectangular lattices, one shifted by half a cell, hold the centres of all hexagons.
    u1, v1 = u - np.floor(u) - 0.5, v - tall * np.floor(v / tall) - tall / 2
    u2, v2 = u - np.floor(u + 0.5), v - tall * np.floor(v / tall + 0.5)
    nearer = np.hypot(u1, v1) < np.hypot(u2, v2)
    a, b = np.abs(np.where(nearer, u1, u2)), np.abs(np.where(nearer, v1, v2))
    from_centre = np.maximum(a, 0.5 * a + tall / 2 * b)
    depth: Plane = pitch * (from_centre - 0.5 + rng.uniform(0.07, 0.13))
    return depth


def rings(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Circles about one centre."""
    period = rng.uniform(0.1, 0.22)
    radius, _ = _around(rng, x, y)
    return _bands(rng, radius / period + rng.random(), period)


def spirals(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Three to five arms that cross every circle about the centre at one angle."""
    num_arms = int(rng.integers(3, 6))
    handed = 1 if rng.random() < 0.5 else -1
    radius, angle = _around(rng, x, y)
    radius += 0.02  # The arms melt together at the centre instead of winding without end.
    across = num_arms / (2 * math.pi)  # Arms met per radian on a circle,
    along = across * rng.uniform(0.8, 1.8)  # and per unit of log radius on a ray.
    t = along * np.log(radius) + handed * across * angle + rng.random()
    return _bands(rng, t, 1) * radius / math.hypot(across, along)


def stars(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Stars of four to six points, scattered and turned at random."""
    pitch = rng.uniform(0.2, 0.38)
    u, v, size, turn = _lattice(rng, x / pitch, y / pitch, jitter=0.2)
    sector = math.pi / int(rng.integers(4, 7))
    angle = np.arctan2(v, u) + 2 * math.pi * turn
    folded = sector * 2 * _from_middle(angle / (2 * sector) + 0.5)
    tip = 0.4 + 0.12 * (size - 0.5)
    # Twice the area of (valley - tip) x (point - tip), over the length of that edge.
    notch = rng.uniform(0.38, 0.5)
    edge_u, edge_v = notch * math.cos(sector) - 1, notch * math.sin(sector)
    reach = np.hypot(u, v)
    area = edge_u * reach * np.sin(folded) - edge_v * (reach * np.cos(folded) - tip)
    depth: Plane = (pitch / math.hypot(edge_u, edge_v)) * area
    return depth


def stripes(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Straight parallel bands in any direction."""
    period = rng.uniform(0.09, 0.22)
    angle = rng.uniform(0, math.pi)
    across = math.cos(angle) * x + math.sin(angle) * y
    return _bands(rng, across / period + rng.random(), period)


def waves(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Parallel bands that swing from side to side, lying or upright."""
    if rng.random() < 0.5:
        x, y = y, x
    period = rng.uniform(0.09, 0.2)
    length = rng.uniform(0.22, 0.45)
    swing = length * rng.uniform(0.16, 0.26)
    bent = y + swing * np.sin(2 * math.pi * (x / length + rng.random()))
    steepness = math.hypot(1, 4 * swing / length)
    return _bands(rng, bent / period, period) / steepness


def branches(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Bare trees: every bough forks until it is a twig."""
    canvas = np.zeros((CANVAS_PX, CANVAS_PX), np.uint8)
    facing = rng.uniform(0, 2 * math.pi)
    for root in range(3):
        angle = facing + root * 2 * math.pi / 3 + rng.normal(0, 0.3)
        start = CANVAS_PX / 2 - rng.uniform(0.3, 0.45) * CANVAS_PX * np.array(
            [math.cos(angle), math.sin(angle)]
        )
        _grow(rng, canvas, start, angle, length_px=rng.uniform(0.14, 0.2) * CANVAS_PX, fork=0)
    inside = cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_3)
    outside = cv2.distanceTransform(1 - canvas, cv2.DIST_L2, cv2.DIST_MASK_3)
    # The canvas covers 1.4 shorter sides, so that its edge is seldom in sight.
    px_per_side = CANVAS_PX / 1.4
    column, row = x * px_per_side + CANVAS_PX / 2, y * px_per_side + CANVAS_PX / 2
    depth_px = cv2.remap(
        inside - outside, column, row, cv2.INTER_LINEAR, borderValue=-0.1 * CANVAS_PX
    )
    return np.asarray(depth_px, np.float32) / px_per_side


def _grow(
    rng: np.random.Generator, canvas: np.ndarray[tuple[int, int], np.dtype[np.uint8]],
    start: np.ndarray[tuple[int], np.dtype[np.float64]], angle: float, *, length_px: float,
    fork: int,
) -> None:
    """Draw a bough from `start` (x, y in pixels) and all that grows from it."""
    end = start + length_px * np.array([math.cos(angle), math.sin(angle)])
    ends = [(round(float(x)), round(float(y))) for x, y in (start, end)]
    cv2.line(canvas, ends[0], ends[1], 1, thickness=max(2, round(9 * 0.72**fork)))
    if fork == 5:
        return
    for side in (-1, 1):
        turn = side * rng.uniform(0.25, 0.7)
        shorter = length_px * rng.uniform(0.7, 0.92)
        _grow(rng, canvas, end, angle + turn, length_px=shorter, fork=fork + 1)


PATTERNS: dict[str, Pattern] = {
    pattern.__name__: pattern
    for pattern in (
        branches, bricks, checks, dots, honeycomb, rings, spirals, stars, stripes, waves,
    )
}
