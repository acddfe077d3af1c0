"""The options of the training command, by group; each is a field of RunConfig."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.locations import Location
from trainer.config import DEVICES, WIRE_DTYPES
from trainer.feed_options import FEEDING, STAGING
from trainer.parallel import MODES
from trainer.precision import PRECISIONS
from trainer.presets import PRESETS

Command = Callable[..., Any]


def run_options(command: Command) -> Command:
    """Adds every option of a run to a click command, in the order of its help."""
    groups = (RECIPE, FEEDING, STAGING, MACHINE, STEP, PROCESSES, SAVING, COMFORTS)
    return _with_options(command, [option for group in groups for option in group])


def staging_options(command: Command) -> Command:
    """Adds the options of where shards are staged to a click command."""
    return _with_options(command, STAGING)


def _with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


RECIPE = (
    click.option(
        "--shards",
        type=Location(),
        help="Shard folder to train from; s3://, gs:// or https:// with --stage-dir.",
    ),
    click.option(
        "--preset", type=click.Choice(list(PRESETS)), default="modern", help="Recipe."
    ),
    click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="TOML file of preset fields to change, as --show-preset prints them.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Preset field to change, such as momentum=0.8; can be repeated; wins over --config.",
    ),
    click.option(
        "--epochs",
        type=int,
        help="Passes over the training split; what the preset does at an epoch moves in "
        "proportion.  [default: preset's]",
    ),
    click.option(
        "--batch-size",
        type=int,
        help="Images per step, over all GPUs; scales the learning rate.  [default: the preset's, "
        "at most the largest power of two <= 1/8 of the training images]",
    ),
    click.option(
        "--init-from",
        type=click.Path(path_type=Path),
        help="Checkpoint whose weights and mean the run starts with, to fine-tune them.",
    ),
    click.option(
        "--replace-head",
        is_flag=True,
        help="With --init-from: start with a new last layer, for other classes.",
    ),
    click.option(
        "--width", type=float, default=1.0, help="Factor on channels and hidden units."
    ),
    click.option(
        "--seed", type=int, default=0, help="Of weights, dropout, order and augmentation."
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Run folder.  [default: runs/PRESET-SEED, with --overfit N "
        "runs/PRESET-SEED-overfit-N]",
    ),
)
MACHINE = (
    click.option(
        "--device", type=click.Choice(DEVICES), default="auto", help="Where to train."
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="auto",
        help="Of the step's arithmetic; weights are always kept in fp32. fp16 scales the loss; "
        "tf32 rounds the factors of products on a GPU, and is fp32 on a CPU. auto: the preset's "
        "on a GPU, fp32 on a CPU.",
    ),
)
STEP = (
    click.option(
        "--compile/--no-compile",
        default=True,
        help="On a GPU, record the whole step as a CUDA graph and replay it, each convolution in "
        "the form that is fastest there, measured for some seconds the first time; a run whose "
        "step cannot be recorded (several processes, fp16, micro-batches) says so and goes on.",
    ),
)
PROCESSES = (
    click.option(
        "--processes",
        type=int,
        help="Processes that share each batch.  [default: one per visible GPU; on CPUs, and with "
        "--overfit, 1]",
    ),
    click.option(
        "--parallel",
        type=click.Choice(["auto", *MODES]),
        default="auto",
        help="How they share the work. data: each its images, gradients are summed; columns: "
        "pairs of them are the paper's two GPUs; hybrid: convolutions as data, fully-connected "
        "layers shared out. auto: by batch and machines.",
    ),
    click.option(
        "--wire",
        type=click.Choice(list(WIRE_DTYPES)),
        default="fp32",
        help="Number format in which gradients travel between them: bf16 is half the bytes, and "
        "rounds each sum.",
    ),
    click.option(
        "--max-restarts",
        type=int,
        default=3,
        help="How often all processes are started again, from the last checkpoint, when one has "
        "crashed.",
    ),
    click.option(
        "--timeout-seconds",
        type=float,
        default=600.0,
        help="After which a process that does not answer the others is taken for crashed.",
    ),
)
SAVING = (
    click.option(
        "--save-every-minutes",
        type=float,
        metavar="M",
        help="Save every so many minutes too, in mid-epoch, so that a crash costs no more than "
        "that.  [default: at the end of each epoch only]",
    ),
    click.option(
        "--save-every-epochs",
        type=int,
        metavar="N",
        help="Keep the checkpoint of every N-th epoch, as epoch-0010.safetensors.  [default: the "
        "last and the best only]",
    ),
)
COMFORTS = (
    click.option(
        "--micro-batch",
        type=int,
        help="Images per forward and backward pass, where a whole batch does not fit in memory; "
        "the step is that of the whole batch, but batch norm sees one micro-batch at a time.  "
        "[default: the batch]",
    ),
    click.option(
        "--ema",
        type=float,
        metavar="DECAY",
        help="Keep a moving average of the weights over about 1 / (1 - DECAY) steps, such as "
        "0.999; it is what is validated, and what prediction takes.  [default: off]",
    ),
    click.option(
        "--weight-report",
        type=int,
        metavar="EPOCHS",
        help="Every so many epochs, tell each layer's mean |w|, that of its last step, and their "
        "ratio.  [default: off]",
    ),
    click.option("--tensorboard", is_flag=True, help="Write metrics for TensorBoard too."),
    click.option(
        "--fed-ratio",
        is_flag=True,
        help="First measure for about 3 seconds how fast the step is without waiting for data, on "
        "a copy of the network; every report then has fed_ratio, the speed of training over that.",
    ),
    click.option(
        "--profile",
        type=int,
        metavar="STEPS",
        help="Trace so many steps, after the first three, into trace-rank-0.json and so on, to be "
        "opened at ui.perfetto.dev; it slows these steps down.  [default: off]",
    ),
    click.option(
        "--limit-steps",
        type=int,
        help="Stop with a checkpoint once the run has made so many steps; without it the same "
        "command goes on.  [default: no limit]",
    ),
    click.option(
        "--overfit",
        type=int,
        metavar="IMAGES",
        help="Sanity check: train on the first so many training images over and over, without "
        "augmentation, and validate on them; the errors should fall to 0.  [default: off]",
    ),
)
