"""The colours of a data set as points in the RGB cube, with their principal axes."""

from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.images import Pixels
from pipeline.moments import Statistics
from tools.figures.canvas import FAINT, INK, PAPER, QUIET, type_of

# Seen from the side: lightness upwards, a colour contrast to the right.
UP = np.array([1.0, 1.0, 1.0]) / np.sqrt(3)
VIEWS = (
    ("green to red", np.array([1.0, -1.0, 0.0]) / np.sqrt(2)),
    ("blue to yellow", np.array([1.0, 1.0, -2.0]) / np.sqrt(6)),
)
MAX_POINTS = 30_000
FILLED = 0.86  # of a view, by the cube: its axes reach out of it
AXIS_STDS = 2.0  # that an axis reaches to either side of the mean
NUMBER_PX = 12  # from an axis to its number
LABELLED_PX = 30  # axes that a view shows from their end have no number in it
CAPTION_PX = 28  # below a view
SEED = 0


def pick_colours(images: Pixels, count: int = MAX_POINTS) -> NDArray[np.uint8]:
    """Colours of pixels drawn by lot from images (N, height, width, 3): uint8 (count, 3)."""
    colours = images.reshape(-1, 3)
    generator = np.random.Generator(np.random.Philox(SEED))
    return colours[generator.integers(0, len(colours), min(count, len(colours)))]


def project(
    colours: NDArray[np.float64], right: NDArray[np.float64], side_px: int
) -> NDArray[np.float64]:
    """Where colours (N, 3) lie in a square view: (N, 2), x to the right and y downwards, in px.

    The cube of 0..255 fits with room around; its grey diagonal is the vertical in the middle.
    """
    scale = side_px * FILLED / (255 * np.sqrt(3))
    centred = np.asarray(colours, np.float64) - 127.5
    x = side_px / 2 + centred @ right * scale
    y = side_px / 2 - centred @ UP * scale
    return np.stack([x, y], 1)


def draw_cloud(
    colours: NDArray[np.uint8], statistics: Statistics, right: NDArray[np.float64], side_px: int
) -> Image.Image:
    """One view of the cloud, with the cube's edges and the three axes through the mean."""
    pixels = np.full((side_px, side_px, 3), PAPER, np.uint8)
    places = project(colours.astype(np.float64), right, side_px).astype(int)
    for dx, dy in product((0, 1), (0, 1)):
        pixels[places[:, 1] + dy, places[:, 0] + dx] = colours
    view = Image.fromarray(pixels)
    draw = ImageDraw.Draw(view)
    corners = np.array(list(product((0.0, 255.0), repeat=3)))
    there = project(corners, right, side_px)
    for i, j in product(range(8), range(8)):
        if i < j and (corners[i] != corners[j]).sum() == 1:
            draw.line((*there[i], *there[j]), FAINT)
    for end in axis_ends(statistics):
        (x0, y0), (x1, y1) = project(end, right, side_px)
        draw.line((x0, y0, x1, y1), PAPER, 5)
        draw.line((x0, y0, x1, y1), INK, 2)
    for i, end in enumerate(axis_ends(statistics)):
        _number(draw, i, *project(end, right, side_px))
    return view


def _number(
    draw: ImageDraw.ImageDraw, axis: int, start: NDArray[np.float64], end: NDArray[np.float64]
) -> None:
    """Beside the axis's end; the third on the other side, as it often lies on the second."""
    along = end - start
    length = float(np.hypot(*along))
    if length < LABELLED_PX:
        return
    beside = np.array([-along[1], along[0]]) / length * NUMBER_PX * (-1 if axis == 2 else 1)
    x, y = end + beside
    draw.text(
        (x, y), str(axis + 1), INK, type_of(14), anchor="mm", stroke_width=3, stroke_fill=PAPER
    )


def axis_ends(statistics: Statistics) -> NDArray[np.float64]:
    """Both ends of each principal axis, (component, 2, RGB): the mean -2 and +2 deviations."""
    reach = (statistics.eigenvectors * np.sqrt(statistics.eigenvalues)).T * AXIS_STDS
    return np.stack([statistics.mean - reach, statistics.mean + reach], 1)


def draw_clouds(
    colours: NDArray[np.uint8], statistics: Statistics, side_px: int, gap_px: int
) -> Image.Image:
    """Both views side by side, each with its name below."""
    width = len(VIEWS) * (side_px + gap_px) - gap_px
    sheet = Image.new("RGB", (width, side_px + CAPTION_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (name, right) in enumerate(VIEWS):
        left = i * (side_px + gap_px)
        sheet.paste(draw_cloud(colours, statistics, right, side_px), (left, 0))
        place = left + side_px // 2, side_px + 4
        draw.text(place, f"up: black to white; right: {name}", QUIET, type_of(13), anchor="ma")
    return sheet
