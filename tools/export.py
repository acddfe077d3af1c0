#!/usr/bin/env python3
"""Writes a checkpoint's network for other programs, as ONNX or as plain safetensors.

    tools/export.py runs/modern-0/best.safetensors --out alexnet.onnx
    tools/export.py runs/modern-0/best.safetensors --out alexnet.safetensors
"""

from pathlib import Path

import click

from pipeline.atomic import require_place, write_whole
from pipeline.messages import clear_errors
from tools.interchange import INPUT, SAFETENSORS_INPUT, TOLERANCE, to_onnx, to_safetensors
from trainer.checkpoint import load_checkpoint, require_finite


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True,
    help="File to write, NAME.onnx or NAME.safetensors.",
)  # fmt: skip
@clear_errors
def main(checkpoint: Path, out: Path) -> None:
    """Write the network of CHECKPOINT to a file that needs nothing of this project.

    ONNX takes pixels as bytes, normalises them itself and was compared with this network by
    onnxruntime before it is written: they may differ by 1e-4 of the largest logit. The safetensors
    file holds weights and normalisation; its metadata says what they are.
    """
    if out.suffix not in (".onnx", ".safetensors"):
        raise click.UsageError(f"--out is {out}, must end with .onnx or .safetensors")
    require_place(out, "--out")
    found = load_checkpoint(checkpoint)
    require_finite(found, str(checkpoint))
    if out.exists() and out.samefile(checkpoint):
        raise click.UsageError(f"--out is {out}, the checkpoint itself; choose another name")
    if out.suffix == ".onnx":
        data, difference = to_onnx(found)
        write_whole(out, data)
        click.echo(f"wrote {out}, {len(data) / 1e6:,.1f} MB; images: {INPUT}")
        click.echo(
            f"logits of onnxruntime differ from this network's by at most {difference:.1g} of the "
            f"largest logit, or of 1 where that is more; tolerated are {TOLERANCE:g}"
        )
    else:
        data = to_safetensors(found)
        write_whole(out, data)
        click.echo(f"wrote {out}, {len(data) / 1e6:,.1f} MB; images: {SAFETENSORS_INPUT}")


if __name__ == "__main__":
    main()
