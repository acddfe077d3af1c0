#!/usr/bin/env python3
"""Draws README's pictures from what the demo left; needs chromium and playwright.

    tools/draw_pictures.py demo --out docs
"""

from pathlib import Path

import click

from pipeline.messages import clear_errors
from tools.figures.readme_pictures import draw_pictures


@click.command(context_settings={"show_default": True})
@click.argument("demo", default="demo", type=click.Path(path_type=Path))
@click.option("--out", default="docs", type=click.Path(path_type=Path), help="Their folder.")
@clear_errors
def main(demo: Path, out: Path) -> None:
    """Draws pictures of DEMO, a folder of tools/demo.py, as PNGs of at most 1 MB in all."""
    for path, num_bytes in draw_pictures(demo, out):
        click.echo(f"wrote {path}, {num_bytes / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
