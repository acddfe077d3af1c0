#!/usr/bin/env python3
"""Top-1 and top-5 errors of a checkpoint over exactly the images of a split.

    tools/evaluate.py runs/modern-0/best.safetensors --shards shards/
    tools/evaluate.py runs/modern-0/best.safetensors --shards shards/ --views 10 --json errors.json
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from pipeline.atomic import write_whole
from pipeline.backends import BACKENDS
from pipeline.loader import Loader, LoaderConfig
from pipeline.locations import Location
from pipeline.messages import clear_errors
from trainer.checkpoint import load_checkpoint, require_classes, restore_model
from trainer.config import DEVICES, find_device
from trainer.evaluate import Errors, evaluate
from trainer.options import staging_options


def errors_of(
    path: Path, shards: Path, split: str, views: int, backend: str, device: str, batch_size: int,
    **staging: Any,
) -> Errors:  # fmt: skip
    """The errors of one checkpoint file; ValueError where it does not fit the shards."""
    checkpoint = load_checkpoint(path)
    place = find_device(device)
    config = LoaderConfig(
        shards=shards,
        split=split,
        batch_size=batch_size,
        training=False,
        lighting="off",
        views="full" if views == 10 else "crop",
        backend=backend,
        device=place.type,
        **staging,
    )
    with Loader(config) as loader:
        require_classes(checkpoint, loader.dataset.classes, str(shards))
        return evaluate(restore_model(checkpoint, place), loader, views)


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--shards", type=Location(), required=True, help="Shard folder, or its URL.")
@click.option("--split", default="val", help="Split to evaluate on.")
@click.option(
    "--views", type=click.Choice(["1", "10"]), default="1", help="Centre crop, or ten views."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write them here.")
@click.option(
    "--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", help="Of the loader."
)
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Where to compute.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, help="Images at once.")
@staging_options
@clear_errors
def main(
    checkpoint: Path, shards: Path, split: str, views: str, json_path: Path | None,
    backend: str, device: str, batch_size: int, **staging: Any,
) -> None:  # fmt: skip
    """Errors of CHECKPOINT over a split of a shard folder."""
    given = (checkpoint, shards, split, int(views), backend, device, batch_size)
    errors = errors_of(*given, **staging)
    click.echo(f"{split}, {'ten views' if views == '10' else 'centre crop'}: {errors.line()}")
    if json_path is not None:
        result = {"checkpoint": str(checkpoint), "split": split, "views": int(views)}
        text = json.dumps(result | dataclasses.asdict(errors), indent=2) + "\n"
        write_whole(json_path, text.encode())


if __name__ == "__main__":
    main()
