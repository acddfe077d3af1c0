"""README's pictures, of the demo's folder: its preview and parts of its report, small."""

import io
import tempfile
from pathlib import Path

from PIL import Image

from pipeline.atomic import write_whole
from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics
from tools.figures.browser import Shade, open_browser, snapshot
from tools.figures.preview_sheet import preview_sheet

MAX_BYTES = 1_000_000  # of all of them together
COLOURS = 192
WINDOW_PX = 1240  # in which the page has two columns of neighbours
PREVIEW_PX = 700  # wide
PARTS: tuple[tuple[str, str, Shade, int], ...] = (  # file, what of the page, its shade, px wide
    ("report-light", "#learning", "light", WINDOW_PX),
    ("report-dark", "#learning", "dark", WINDOW_PX),
    ("predictions", "#predictions .photos", "light", 760),
    ("neighbours", "#neighbours .similar", "light", 760),
)


def draw_pictures(demo: Path, out: Path) -> list[tuple[Path, int]]:
    """Writes the PNGs into `out`; returns each with its size in bytes.

    demo: the folder that tools/demo.py left. ValueError where there is no browser to show the
    report in, where the demo has not run, or where the pictures come out too large.
    """
    report = demo / "report.html"
    if not report.is_file():
        raise ValueError(f"there is no {report}; run: make demo")
    shards = demo / "shards"
    dataset = open_dataset(shards)
    statistics = read_statistics(shards, dataset.fingerprint("train"))
    sheet = preview_sheet(dataset, statistics, num_images=3, num_draws=5, seed=0)
    pictures = {"preview": small_png(sheet, PREVIEW_PX)}
    with open_browser() as browser, tempfile.TemporaryDirectory() as folder:
        for name, part, shade, width_px in PARTS:
            path = Path(folder) / f"{name}.png"
            snapshot(browser, report, part, path, width_px=WINDOW_PX, shade=shade)
            with Image.open(path) as image:
                pictures[name] = small_png(image.convert("RGB"), width_px)
    total = sum(len(data) for data in pictures.values())
    if total > MAX_BYTES:
        raise ValueError(
            f"the pictures come to {total:,} bytes, must be at most {MAX_BYTES:,} together"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        write_whole(out / f"{name}.png", data)
    return [(out / f"{name}.png", len(data)) for name, data in pictures.items()]


def small_png(image: Image.Image, width_px: int) -> bytes:
    """A PNG of few colours, at most that wide."""
    if image.width > width_px:
        height = round(image.height * width_px / image.width)
        image = image.resize((width_px, height), Image.Resampling.LANCZOS)
    few = image.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    buffer = io.BytesIO()
    few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
