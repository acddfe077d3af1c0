"""One image at -3 to +3 sigma of lighting along each principal component."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.draws import ALPHA_STD, centre_draws, lighting_offsets, lighting_scale
from pipeline.manifest import Dataset
from pipeline.moments import Statistics
from tools.figures.canvas import GAP_PX, PAPER, QUIET, shown, tile, type_of
from tools.figures.rendering import render_rows

SIGMAS = (-3, -2, -1, 0, 1, 2, 3)
CAPTION_PX = 24


def lit_strips(
    dataset: Dataset, statistics: Statistics, row: int, lighting: str = "std"
) -> NDArray[np.float32]:
    """The centre crop of a training image, lit: float32 (component, sigma, 224, 224, 3).

    By the pipeline, as training lights it: alpha = k * 0.1 for k of -3 to 3, one component alone.
    lighting: "std" or "variance", as in pipeline.loader_config.
    """
    crop = centre_draws(1).crop
    works = []
    for component in range(3):
        for sigma in SIGMAS:
            alpha = np.zeros((1, 3))
            alpha[0, component] = sigma * ALPHA_STD
            scale = lighting_scale(statistics.eigenvalues, lighting)
            works.append((crop, lighting_offsets(alpha, statistics.eigenvectors, scale)))
    rendered = render_rows(dataset, np.array([row]), works, full=False)
    # (component x sigma, 1, 224, 224, 3) -> (component, sigma, 224, 224, 3)
    return np.stack(rendered).reshape(3, len(SIGMAS), *rendered[0].shape[1:])


def sigma_colours(statistics: Statistics, lighting: str = "std") -> NDArray[np.float64]:
    """What one sigma of lighting adds along each component, (component, RGB), 0..255 units."""
    scale = lighting_scale(statistics.eigenvalues, lighting)
    return (statistics.eigenvectors * scale * ALPHA_STD).T


def draw_strips(
    strips: NDArray[np.float32], added: NDArray[np.float64], width_px: int
) -> Image.Image:
    """A row of tiles for each component, with what one sigma adds."""
    side = (width_px - GAP_PX) // len(SIGMAS) - GAP_PX
    row_px = CAPTION_PX + side + GAP_PX
    sheet = Image.new("RGB", (width_px, 3 * row_px + CAPTION_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    for component, strip in enumerate(strips):
        top = component * row_px
        red, green, blue = added[component]
        sigma = f"R {red:+.1f}  G {green:+.1f}  B {blue:+.1f}"
        text = f"component {component + 1}: one sigma adds {sigma}"
        draw.text((GAP_PX, top + 5), text, QUIET, type_of(13))
        for i, pixels in enumerate(strip):
            place = GAP_PX + i * (side + GAP_PX), top + CAPTION_PX
            sheet.paste(tile(shown(pixels), side), place)
    _draw_sigmas(draw, side, 3 * row_px)
    return sheet


def _draw_sigmas(draw: ImageDraw.ImageDraw, side: int, top: int) -> None:
    for i, sigma in enumerate(SIGMAS):
        text = f"{sigma:+d} sigma" if sigma else "as it is"
        middle = GAP_PX + i * (side + GAP_PX) + side // 2
        draw.text((middle, top + 4), text, QUIET, type_of(13), anchor="ma")
