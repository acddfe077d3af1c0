"""A sheet of samples: each stored image beside several of its augmented forms."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.draws import draws, lighting_offsets, lighting_scale
from pipeline.manifest import Dataset
from pipeline.moments import Statistics
from pipeline.order import Rows, order
from tools.figures.canvas import GAP_PX, INK, PAPER, label, shown, tile, type_of
from tools.figures.rendering import render_rows

HEADER_PX = 22
CELL_PX = 160


def pick_rows(dataset: Dataset, num_images: int, seed: int) -> Rows:
    """The first rows of epoch 0's training order, of as many different classes as there are."""
    sizes = [shard.samples for shard in dataset.split("train").shards]
    rows = order(sizes, seed, epoch=0)
    labels = dataset.index("train")["label"][rows]
    _, first_of_class = np.unique(labels, return_index=True)
    chosen = sorted(first_of_class)[:num_images]
    others = [i for i in range(len(rows)) if i not in set(chosen)]
    return rows[chosen + others[: num_images - len(chosen)]]


def augmented(
    dataset: Dataset,
    statistics: Statistics,
    rows: Rows,
    *,
    num_draws: int,
    seed: int,
    lighting: str = "std",
) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    """The stored images of `rows`, and `num_draws` renderings of them by the real pipeline.

    Returns uint8 (N, 256, 256, 3), and for each draw float32 (N, 224, 224, 3) in 0..255 units plus
    lighting, unclamped. The draws are those of step 0 of epochs 0, 1, …. lighting: "std" or
    "variance", as in pipeline.loader_config.
    """
    offsets_scale = lighting_scale(statistics.eigenvalues, lighting)
    drawn = [draws(seed, epoch, 0, len(rows)) for epoch in range(num_draws)]
    (stored,) = render_rows(dataset, rows, [(drawn[0].crop, None)], full=True)
    works = [
        (one.crop, lighting_offsets(one.alpha, statistics.eigenvectors, offsets_scale))
        for one in drawn
    ]
    return stored, render_rows(dataset, rows, works, full=False)


def contact_sheet(
    stored: NDArray[np.uint8], renderings: Sequence[NDArray[np.float32]], labels: Sequence[str]
) -> Image.Image:
    """Draws the sheet: a row per image, first as stored, then each rendering (clamped to show)."""
    step = CELL_PX + GAP_PX
    width, height = step * (1 + len(renderings)) + GAP_PX, HEADER_PX + step * len(stored) + GAP_PX
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX, 4), "stored, 256 x 256", INK, type_of(12))
    draw.text(
        (GAP_PX + step, 4), "crop 224 x 224, flip, PCA lighting: one draw per epoch",
        INK, type_of(12),
    )  # fmt: skip
    for row, pixels in enumerate(stored):
        top = HEADER_PX + GAP_PX + step * row
        for column, cell in enumerate([pixels, *(one[row] for one in renderings)]):
            sheet.paste(tile(shown(cell), CELL_PX), (GAP_PX + step * column, top))
        label(draw, (GAP_PX + 3, top + CELL_PX - 17), labels[row], CELL_PX - 2 * GAP_PX)
    return sheet
