#!/usr/bin/env python3
"""Checks prepared shards: sizes, SHA-256, index, counts, and that every image decodes.

    tools/verify_shards.py shards
    tools/verify_shards.py shards --repair /path/to/imagenet
    tools/verify_shards.py shards --epoch 0 --world-size 2
"""

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.cores import available_cores
from pipeline.locations import Location
from pipeline.manifest import open_dataset
from pipeline.messages import clear_errors
from pipeline.plan import Settings
from pipeline.repair import repair
from pipeline.sources import FORMATS, open_source
from tools.ledger_report import EpochOptions, epoch_options, report_epoch
from tools.preparation import local_engine
from tools.verification import verify


@click.command(context_settings={"show_default": True})
@click.argument("shards", default="shards", type=Location())
@click.option(
    "--sample",
    default=1.0,
    type=click.FloatRange(0, 1),
    help="Share of the images to decode; all else is always checked in full.",
)
@click.option(
    "--seed", default=0, type=click.IntRange(min=0), help="Of the sample; of --epoch's order."
)
@click.option(
    "--repair",
    "source",
    type=click.Path(path_type=Path),
    help="The originals: rebuild damaged shards from them, byte for byte.",
)
@click.option("--format", default="auto", type=click.Choice(["auto", *FORMATS]), help="Of SOURCE.")
@click.option(
    "--workers", default=available_cores(), type=click.IntRange(1), help="Processes that rebuild."
)
@epoch_options
@clear_errors
def main(
    shards: Path,
    sample: float,
    seed: int,
    source: Path | None,
    format: str,
    workers: int,
    **of_epoch: Any,
) -> None:
    """Checks SHARDS; exits with 1 where anything is wrong (and was not repaired)."""
    options = EpochOptions(**of_epoch)
    dataset = open_dataset(shards, check_sizes=False)
    if options.epoch is not None and (source is not None or sample != 1):
        raise click.UsageError("--repair and --sample are not for --epoch: it looks at an order")
    if options.epoch is not None:
        sys.exit(0 if report_epoch(dataset, options, seed) else 1)
    findings = verify(dataset, sample, seed)
    if findings.sound or source is None:
        sys.exit(0 if findings.sound else 1)
    click.echo(f"repairing {len(findings.damaged)} shards from {source}")
    originals = open_source(source, format, Settings.from_dict(dataset.settings).val_fraction)
    engine = local_engine("repair", workers)
    dataset = repair(originals, dataset, list(findings.damaged), engine)
    sys.exit(0 if verify(dataset, sample, seed).sound else 1)


if __name__ == "__main__":
    main()
