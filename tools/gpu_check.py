#!/usr/bin/env python3
"""What a machine with an NVIDIA GPU has to prove: its tests, then its speeds, in one file.

    tools/gpu_check.py
"""

import sys
from pathlib import Path

import click
import torch

from pipeline.messages import clear_errors
from tools.measure.gpu import LIMIT_SECONDS, GpuCheck, check_table


@click.command(context_settings={"show_default": True})
@click.option(
    "--results", default="results", type=click.Path(path_type=Path), help="Where the file goes."
)
@click.option("--limit-seconds", default=LIMIT_SECONDS, help="No stage begins after that.")
@clear_errors
def main(results: Path, limit_seconds: float) -> None:
    """Runs the GPU tests, then measures loader, step alone and step fed, on made-up photographs,
    with ceilings of the same run; needs no network. Exit code 1 where a test or stage failed."""
    if not torch.cuda.is_available():
        raise click.ClickException(
            "gpu-check needs an NVIDIA GPU, and PyTorch sees none here: nothing was tested, "
            "nothing was measured"
        )
    check = GpuCheck(results, limit_seconds)
    report = check.run()
    click.echo(f"\n{check_table(report)}\nwrote {check.path}")
    if report["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
