#!/usr/bin/env python3
"""The five most probable classes of any photograph; needs the checkpoint and nothing else.

    tools/predict.py runs/modern-0/best.safetensors photo.jpg
    tools/predict.py runs/modern-0/best.safetensors photographs/ --views 10 --json classes.json
"""

import dataclasses
import json
import sys
from pathlib import Path

import click

from pipeline.atomic import require_place, write_whole
from pipeline.messages import clear_errors
from tools.evaluation import VIEWS
from tools.prediction import Predictor
from trainer.checkpoint import load_checkpoint, require_finite
from trainer.config import DEVICES, find_device


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument(
    "photos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PHOTO..."
)
@click.option(
    "--views", type=click.Choice(list(VIEWS)), default="1", help="Centre crop, or ten views."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write them here.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Where to compute.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, help="Images at once.")
@clear_errors
def main(
    checkpoint: Path, photos: tuple[Path, ...], views: str, json_path: Path | None, device: str,
    batch_size: int,
) -> None:  # fmt: skip
    """Classes of each PHOTO, a file or a folder of files, by the network of CHECKPOINT.

    A file that is no photograph is named with the reason, the rest goes on, and the exit code is 1
    in the end.
    """
    if json_path is not None:
        require_place(json_path, "--json")
    loaded = load_checkpoint(checkpoint)
    require_finite(loaded, str(checkpoint))
    predictor = Predictor(loaded, find_device(device), int(views))
    found = []
    for prediction in predictor.predict(photos, batch_size):
        found.append(dataclasses.asdict(prediction))
        name = click.format_filename(prediction.path)
        if prediction.refused:
            click.echo(f"{name}: {prediction.refused}", err=True)
            continue
        click.echo(name)
        for guess in prediction.best:
            click.echo(f"  {guess.probability:>7.2%}  {guess.name}")
    if json_path is not None:
        report = {"checkpoint": str(checkpoint), "views": int(views), "photographs": found}
        write_whole(json_path, (json.dumps(report, indent=2) + "\n").encode())
    if refused := sum(prediction["refused"] is not None for prediction in found):
        click.echo(f"{refused:,} of {len(found):,} could not be read as photographs", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
