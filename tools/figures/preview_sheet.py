"""All of a preview on one sheet: augmented samples, lighting, the mean image, the colours."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from pipeline.draws import centre_draws
from pipeline.manifest import Dataset
from pipeline.moments import Statistics
from tools.figures.canvas import GAP_PX, INK, PAPER, QUIET, legible, shown, tile, type_of
from tools.figures.colour_cloud import draw_clouds, pick_colours
from tools.figures.contact_sheet import augmented, contact_sheet, pick_rows
from tools.figures.lighting_strips import draw_strips, lit_strips, sigma_colours
from tools.figures.rendering import render_rows

NUM_COLOUR_IMAGES = 64
TITLE_PX = 64
MEAN_PX = 256


def preview_sheet(
    dataset: Dataset,
    statistics: Statistics,
    *,
    num_images: int,
    num_draws: int,
    seed: int,
    lighting: str = "std",
) -> Image.Image:
    """The sheet of a data set, as wide as its samples need, at least 1002 px.

    lighting: "std" or "variance", as in pipeline.loader_config.
    """
    rows = pick_rows(dataset, num_images, seed)
    stored, renderings = augmented(
        dataset, statistics, rows, num_draws=num_draws, seed=seed, lighting=lighting
    )
    classes = dataset.index("train")["label"][rows].tolist()
    labels = [legible(dataset.classes[one], f"class {one}") for one in classes]
    samples = contact_sheet(stored, renderings, labels)
    width = max(samples.width, 6 * 166 + GAP_PX)
    strips = lit_strips(dataset, statistics, int(rows[0]), lighting)
    train = dataset.split("train")
    sections = [
        (
            "What the network is shown",
            f"some of {train.written:,} training images of {len(dataset.classes):,} classes",
            samples,
        ),
        (
            "Lighting",
            "one image at -3 to +3 sigma along each principal component; training draws all three",
            draw_strips(strips, sigma_colours(statistics, lighting), width),
        ),
        (
            "Mean image and colours",
            f"pixels of {min(NUM_COLOUR_IMAGES, train.written)} images in the RGB cube, from two "
            f"sides; principal axes of two standard deviations, which are "
            f"{', '.join(f'{root:.1f}' for root in np.sqrt(statistics.eigenvalues))}",
            _colours(dataset, statistics, seed, width),
        ),
    ]
    return _stack(sections, width)


def _colours(dataset: Dataset, statistics: Statistics, seed: int, width: int) -> Image.Image:
    rows = pick_rows(dataset, min(NUM_COLOUR_IMAGES, dataset.num_samples("train")), seed)
    (images,) = render_rows(dataset, rows, [(centre_draws(len(rows)).crop, None)], full=True)
    side = (width - MEAN_PX - 5 * GAP_PX) // 2 - GAP_PX
    clouds = draw_clouds(pick_colours(images), statistics, side, GAP_PX)
    sheet = Image.new("RGB", (width, clouds.height + 2 * GAP_PX), PAPER)
    sheet.paste(tile(shown(statistics.mean_image), MEAN_PX), (GAP_PX, GAP_PX))
    red, green, blue = statistics.mean
    told = f"mean R {red:.1f}  G {green:.1f}  B {blue:.1f}"
    place = GAP_PX, MEAN_PX + 3 * GAP_PX
    ImageDraw.Draw(sheet).text(place, told, QUIET, type_of(13))
    sheet.paste(clouds, (MEAN_PX + 5 * GAP_PX, GAP_PX))
    return sheet


def _stack(sections: Sequence[tuple[str, str, Image.Image]], width: int) -> Image.Image:
    height = sum(TITLE_PX + picture.height for *_, picture in sections) + GAP_PX
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for title, text, picture in sections:
        draw.text((GAP_PX, top + 12), title, INK, type_of(20))
        draw.text((GAP_PX, top + 40), text, QUIET, type_of(13))
        sheet.paste(picture, (0, top + TITLE_PX))
        top += TITLE_PX + picture.height
    return sheet
