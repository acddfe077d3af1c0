#!/usr/bin/env python3
"""Top-1 and top-5 errors of checkpoints, alone and together, over exactly a split's images.

    tools/evaluate.py runs/modern-0/best.safetensors --shards shards/ --views 10 --per-class
    tools/evaluate.py runs/*/best.safetensors --shards shards/ --json errors.json
"""

import json
from pathlib import Path
from typing import Any

import click

from pipeline.atomic import require_place, write_whole
from pipeline.backends import BACKENDS
from pipeline.locations import Location
from pipeline.messages import clear_errors
from tools.evaluation import VIEWS, Evaluation, class_table, error_lines
from trainer.config import DEVICES
from trainer.options import staging_options


@click.command(context_settings={"show_default": True})
@click.argument(
    "checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path),
    metavar="CHECKPOINT...",
)  # fmt: skip
@click.option("--shards", type=Location(), required=True, help="Shard folder, or its URL.")
@click.option("--split", default="val", help="Split to evaluate on.")
@click.option(
    "--views", type=click.Choice(list(VIEWS)), default="1", help="Centre crop, or ten views."
)
@click.option("--per-class", is_flag=True, help="Print the errors of each class, worst first.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write them here.")
@click.option(
    "--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", help="Of the loader."
)
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Where to compute.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, help="Images at once.")
@staging_options
@clear_errors
def main(
    checkpoints: tuple[Path, ...], shards: Path, split: str, views: str, per_class: bool,
    json_path: Path | None, backend: str, device: str, batch_size: int, **staging: Any,
) -> None:  # fmt: skip
    """Errors of each CHECKPOINT over a split of a shard folder.

    Of several, also those of their averaged probabilities; their classes must be the same, widths
    and presets need not.
    """
    if json_path is not None:
        require_place(json_path, "--json")
    report = Evaluation(
        checkpoints=checkpoints, shards=shards, split=split, views=int(views), backend=backend,
        device=device, batch_size=batch_size, staging=staging,
    ).run()  # fmt: skip
    for line in error_lines(report):
        click.echo(line)
    if per_class:
        click.echo(class_table(report))
    if json_path is not None:
        write_whole(json_path, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
