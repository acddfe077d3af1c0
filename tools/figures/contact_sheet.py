"""A sheet of samples: each stored image beside several of its augmented forms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.backends import RenderSettings, Work, open_first
from pipeline.cores import available_cores
from pipeline.draws import draws, lighting_offsets
from pipeline.images import RAW_HEADER, Pixels
from pipeline.manifest import Dataset
from pipeline.moments import Statistics
from pipeline.open_shards import LocalShards
from pipeline.order import Rows, order
from pipeline.reader import Reader

GAP_PX = 6
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
    dataset: Dataset, statistics: Statistics, rows: Rows, *, num_draws: int, seed: int
) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    """The stored images of `rows`, and `num_draws` renderings of them by the real pipeline.

    Returns uint8 (N, 256, 256, 3), and for each draw float32 (N, 224, 224, 3) in 0..255 units plus
    lighting, unclamped. The draws are those of step 0 of epochs 0, 1, ….
    """
    offsets_scale = np.sqrt(statistics.eigenvalues)
    drawn = [draws(seed, epoch, 0, len(rows)) for epoch in range(num_draws)]
    (stored,) = _render(dataset, rows, [(drawn[0].crop, None)], full=True)
    works = [
        (one.crop, lighting_offsets(one.alpha, statistics.eigenvectors, offsets_scale))
        for one in drawn
    ]
    return stored, _render(dataset, rows, works, full=False)


def contact_sheet(
    stored: NDArray[np.uint8], renderings: Sequence[NDArray[np.float32]], labels: Sequence[str]
) -> Image.Image:
    """Draws the sheet: a row per image, first as stored, then each rendering (clamped to show)."""
    step = CELL_PX + GAP_PX
    width, height = step * (1 + len(renderings)) + GAP_PX, HEADER_PX + step * len(stored) + GAP_PX
    sheet = Image.new("RGB", (width, height), (24, 26, 30))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    draw.text((GAP_PX, 4), "stored, 256 x 256", (220, 220, 220), font)
    draw.text(
        (GAP_PX + step, 4), "crop 224 x 224, flip, PCA lighting: one draw per epoch",
        (220, 220, 220), font,
    )  # fmt: skip
    for row, pixels in enumerate(stored):
        top = HEADER_PX + GAP_PX + step * row
        cells: list[Pixels] = [pixels]
        cells += [np.clip(np.rint(one[row]), 0, 255).astype(np.uint8) for one in renderings]
        for column, cell in enumerate(cells):
            tile = Image.fromarray(cell).resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
            sheet.paste(tile, (GAP_PX + step * column, top))
        _label(draw, (GAP_PX + 3, top + CELL_PX - 17), labels[row], font)
    return sheet


def _label(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, top, right, bottom = draw.textbbox(place, text, font)
    draw.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=(24, 26, 30))
    draw.text(place, text, (240, 240, 240), font)


def _render(
    dataset: Dataset,
    rows: Rows,
    works: Sequence[tuple[NDArray[np.int32], NDArray[np.float32] | None]],
    *,
    full: bool,
) -> list[NDArray[Any]]:
    """Renders the images of `rows` once for each (crop, offsets), on the CPU."""
    settings = RenderSettings(
        encoding=dataset.encoding,
        max_rows=len(rows),
        num_threads=available_cores(),
        depth=1,
        full=full,
        dtype=np.uint8 if full else np.float32,
    )
    shards = [dataset.folder / shard.name for shard in dataset.split("train").shards]
    header = RAW_HEADER if dataset.encoding == "raw" else b""
    reader = Reader(
        LocalShards(shards),
        dataset.index("train"),
        header=header,
        max_rows=len(rows),
        depth=1,
        num_threads=1,
    )
    opened = open_first("auto", lambda _: settings, on_gpu=False, encoding=dataset.encoding)
    renderer = opened.backend
    rendered = []
    try:
        for crop, offsets in works:
            reader.request(rows)
            renderer.submit(renderer.prepare(Work(reader.take(), crop, offsets)))
            rendered.append(np.array(np.from_dlpack(renderer.take())))
            reader.release()
    finally:
        renderer.close()
        reader.close()
    return rendered
