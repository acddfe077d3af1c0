#!/usr/bin/env python3
"""One page about a run, or about several beside one another: curves, kernels, pictures, errors.

    tools/report.py runs/modern-0
    tools/report.py runs/modern-0 runs/paper-0 --out compared.html
    tools/report.py runs/modern-0 --originals /path/to/imagenet     with what was quarantined
"""

from pathlib import Path

import click

from pipeline.atomic import require_place, write_whole
from pipeline.messages import clear_errors
from tools.figures.chapter import SAMPLE_ON_CPU, SAMPLE_ON_GPU, default_sample, write_chapter
from tools.figures.dataset_account import account_all
from tools.figures.page import render_page
from tools.figures.run_record import read_runs
from trainer.config import DEVICES, find_device


@click.command(context_settings={"show_default": True})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", default="report.html", type=click.Path(path_type=Path), help="The page.")
@click.option(
    "--shards", type=click.Path(path_type=Path), show_default="where each run trained from",
    help="Shard folder to take photographs from.",
)
@click.option(
    "--originals", type=click.Path(path_type=Path),
    help="What the shards were prepared from: shows what was quarantined.",
)
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Where to compute.")
@click.option(
    "--images", type=click.IntRange(min=1), show_default=f"{SAMPLE_ON_CPU:,}, on a GPU "
    f"{SAMPLE_ON_GPU:,}", help="The most of each split that the network is shown.",
)
@clear_errors
def main(
    runs: tuple[Path, ...], out: Path, shards: Path | None, originals: Path | None, device: str,
    images: int | None,
) -> None:  # fmt: skip
    """Writes one self-contained page about each RUN, a folder of trainer/run.py."""
    require_place(out, "--out")
    where = find_device(device)
    records = read_runs(runs, shards)
    chapters = [write_chapter(run, where, images or default_sample(where)) for run in records]
    datasets = [chapter.dataset for chapter in chapters if chapter.dataset is not None]
    page = render_page(chapters, account_all(datasets, originals)).encode()
    write_whole(out, page)
    click.echo(f"wrote {out}, {len(page) / 1e6:.1f} MB; open it in any browser")


if __name__ == "__main__":
    main()
