#!/usr/bin/env python3
"""Everything once, on made-up photographs: prepare, PCA, train, evaluate, measure, look.

    tools/demo.py demo
"""

from pathlib import Path

import click

from pipeline.messages import clear_errors
from tools.measure.tour import Tour


@click.command(context_settings={"show_default": True})
@click.argument("folder", default="demo", type=click.Path(path_type=Path))
@click.option("--epochs", default=16, help="Of the training, on a quarter-width network.")
@clear_errors
def main(folder: Path, epochs: int) -> None:
    """Runs every command of the project in FOLDER and prints what it did and measured."""
    folder.mkdir(parents=True, exist_ok=True)
    images, shards, run = folder / "images", folder / "shards", folder / "run"
    evaluation, benchmark = folder / "evaluation.json", folder / "benchmark.json"
    preview, report = folder / "preview.png", folder / "report.html"
    tour = Tour(folder)
    tour.run("images", "tools/make_demo_images.py", images)
    tour.run("prepare", "tools/prepare_shards.py", images, "--out", shards)
    tour.run("pca", "tools/compute_pca.py", shards)
    train = ("--shards", shards, "--width", "0.25", "--epochs", str(epochs), "--out", run)
    tour.run("train", "trainer/run.py", *train, "--fed-ratio")
    evaluate = (run / "last.safetensors", "--shards", shards, "--views", "10")
    tour.run("evaluate", "tools/evaluate.py", *evaluate, "--json", evaluation)
    measure = ("--shards", shards, "--against", "torch", "--images", "3000", "--json", benchmark)
    tour.run("benchmark", "tools/benchmark.py", "loader", *measure)
    tour.run("preview", "tools/preview.py", shards, "--out", preview)
    tour.run("report", "tools/report.py", run, "--originals", images, "--out", report)
    click.echo("\n" + tour.table())
    click.echo(f"\nthe report is here; open it in any browser: {report.resolve().as_uri()}")


if __name__ == "__main__":
    main()
