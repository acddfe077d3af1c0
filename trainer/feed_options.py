"""The options of how training is fed: what decodes, what is kept, what is staged where."""

from pathlib import Path

import click

from pipeline.backends import BACKENDS
from pipeline.byte_size import ByteSize
from pipeline.order import ORDERS, Window
from pipeline.resident import FORMATS, RESIDENT


class WindowSize(click.ParamType[Window]):
    """A number of shards, or all."""

    name = "shards"

    def convert(
        self, value: str | int, param: click.Parameter | None, context: click.Context | None
    ) -> Window:
        """The window of pipeline/order.py; a usage error where it is none."""
        if value == "all":
            return "all"
        try:
            if int(value) >= 1:
                return int(value)
        except ValueError:
            pass
        self.fail(f"{value!r} is neither 'all' nor a number of shards, at least 1", param, context)


FEEDING = (
    click.option(
        "--backend",
        type=click.Choice(["auto", *BACKENDS]),
        default="auto",
        help="What decodes and augments.",
    ),
    click.option(
        "--loader-threads",
        type=int,
        help="Threads that render, of this process.  [default: cores / ranks of this host]",
    ),
    click.option(
        "--prefetch",
        type=int,
        default=3,
        help="Steps rendered at a time, that trained on next among them; 1: none while it trains.",
    ),
    click.option(
        "--calibrate",
        is_flag=True,
        help="Measure for some seconds which loader threads and which share of a GPU's JPEG "
        "engine are fastest; with --backend auto on CPUs, which of dali-cpu and numpy.",
    ),
    click.option(
        "--exact",
        is_flag=True,
        help="Leave a GPU's JPEG engine unused, so that runs on dali-gpu are bit-equal.",
    ),
    click.option(
        "--resident",
        type=click.Choice(RESIDENT),
        default="none",
        help="Where decoded images are kept, 197 kB each, so that none is decoded twice: device, "
        "each GPU its share; host, memory that the processes of a machine share; auto, the first "
        "of them with room. Order, draws and pixels are those of raw shards.",
    ),
    click.option(
        "--resident-format",
        type=click.Choice(list(FORMATS)),
        default="rgb",
        help="How a GPU keeps them; yuv420: in half the memory, colour for every second pixel "
        "each way, so other pixels than any other run's.",
    ),
    click.option(
        "--order",
        type=click.Choice(ORDERS),
        default="global",
        help="local: each process draws from its own share of the images, which is what its GPU "
        "keeps, and nothing is sent; other batches, resumed on as many processes only.",
    ),
    click.option(
        "--window",
        type=WindowSize(),
        default="all",
        help="Shuffle within runs of this many shards, drawn anew each epoch, and read from no "
        "others meanwhile; all: over the whole split.",
    ),
)
STAGING = (
    click.option(
        "--stage-dir",
        type=click.Path(path_type=Path),
        help="Local folder to which shards are brought ahead of use, shared by all processes.  "
        "[default: none, shards are read where they lie; needed for a URL]",
    ),
    click.option(
        "--stage-bytes",
        type=ByteSize(),
        help="The most it may hold, like 200GB; room for all shards, or for two windows.  "
        "[default: nine tenths of what is free there]",
    ),
)
