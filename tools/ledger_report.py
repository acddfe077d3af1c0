"""Who gets which samples in an epoch: its ledger made, checked, and told in print."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.atomic import is_local
from pipeline.class_mix import check_window, class_mix, shard_mix
from pipeline.ledger import (
    Part,
    check_parts,
    num_differing,
    planned_parts,
    read_ledger,
    write_ledger,
)
from pipeline.loader_config import LoaderConfig
from pipeline.manifest import Dataset
from pipeline.order import ORDER_VERSION, ORDERS, Rows, Window, local_order, order
from pipeline.shards import Index
from tools.progress import Progress

MAX_SAMPLES = 2**20  # of the batches whose class entropy is taken: all of most data sets
MAX_EPOCH = 2**32 - 1  # NumPy's Philox would count to 2**64

Command = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class EpochOptions:
    """What verify_shards.py is asked of an epoch; without one, nothing."""

    epoch: int | None = None
    world_size: int = 1
    batch_size: int | None = None
    window: Window = "all"
    order: str = "global"
    split: str = "train"
    ledger: Path | None = None
    deliver: bool = False

    def __post_init__(self) -> None:
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        if given and self.epoch is None:
            raise click.UsageError(f"--{given[0].replace('_', '-')} needs --epoch")


def _window(ctx: click.Context, param: click.Parameter, value: str) -> Window:
    """A number of shards from 1, or the word all; a usage error where it is neither."""
    del ctx, param
    if value == "all":
        return "all"
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number of shards from 1 nor all")
    return int(value)


EPOCH_OPTIONS = (
    click.option(
        "--epoch",
        type=click.IntRange(0, MAX_EPOCH),
        help="Check instead that this epoch (from 0) visits each sample exactly once.",
    ),
    click.option(
        "--world-size", default=1, type=click.IntRange(min=1), help="Ranks of that epoch."
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Images per step, over all ranks.  [default: that of trainer/run.py]",
    ),
    click.option(
        "--window",
        default="all",
        callback=_window,
        metavar="W|all",
        help="Shards shuffled together.",
    ),
    click.option(
        "--order",
        default="global",
        type=click.Choice(ORDERS),
        help="local: each rank draws from its own share of the images.",
    ),
    click.option(
        "--split", default="train", help="train in random order, others in index order."
    ),
    click.option(
        "--ledger",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write the ids of each rank and step here, as JSON lines, and check the file.",
    ),
    click.option(
        "--deliver",
        is_flag=True,
        help="Take the ids from real loaders that decode every image (numpy backend), not from "
        "the order alone.",
    ),
)


def epoch_options(command: Command) -> Command:
    """Adds the fields of EpochOptions to a click command."""
    for option in reversed(EPOCH_OPTIONS):
        command = option(command)
    return command


def report_epoch(dataset: Dataset, options: EpochOptions, seed: int) -> bool:
    """Makes, checks and prints the ledger of an epoch; whether each sample comes exactly once.

    ValueError where the loader would refuse this epoch, OSError where a file cannot be written.
    """
    assert options.epoch is not None
    if options.deliver and not is_local(dataset.folder):
        raise ValueError(
            f"--deliver reads every image, and {dataset.folder} is not on this machine: leave it "
            "out, the order alone needs only the index; or give a local copy"
        )
    rows = dataset.index(options.split)
    config = _loader_config(options, seed, len(rows))
    planned = list(
        planned_parts(
            rows["id"],
            _order(dataset, config, options.epoch),
            config.batch_size,
            config.world_size,
            training=config.training,
        )
    )
    within = "order local" if config.order == "local" else f"window {config.window}"
    how = f"seed {seed}, {within}" if config.training else "index order"
    click.echo(
        f"{config.split}, epoch {options.epoch}, {how}: {len(rows):,} images, "
        f"global batch {config.batch_size:,}, world size {config.world_size}"
    )
    parts = planned
    if options.deliver:
        parts = _delivered(replace(config, shards=dataset.folder), options.epoch)
    if options.ledger is not None:
        write_ledger(options.ledger, _described(dataset, options, config), parts)
        click.echo(f"wrote {options.ledger}")
        parts = read_ledger(options.ledger)[1]
    problems = _check(parts, rows, config)
    if options.deliver:
        num_other = num_differing(parts, planned)
        click.echo(f"delivered by loaders: {len(parts):,} parts, {num_other:,} unlike the order")
        problems |= num_other > 0
    if config.training and not problems:
        _print_entropy(parts, rows, config)
    click.echo(f"exactly once: {'NO' if problems else 'yes'}")
    if config.training:
        check_window(rows, config.window, f"{dataset.folder}, {config.split}")
    return not problems


def _check(parts: list[Part], rows: Index, config: LoaderConfig) -> bool:
    """Whether anything is wrong with the parts; prints what."""
    ids = rows["id"].astype(np.int64)
    account = check_parts(
        parts, ids, config.batch_size, config.world_size, training=config.training
    )
    for problem in account.problems:
        click.echo(f"wrong: {problem}")
    dropped = " (the last partial batch, which training drops)" if account.num_missing else ""
    click.echo(
        f"{len(parts):,} parts of {account.num_steps:,} steps, {account.num_distinct:,} distinct "
        f"samples, {account.num_missing:,} missing{'' if account.problems else dropped}"
    )
    return bool(account.problems)


def _print_entropy(parts: list[Part], rows: Index, config: LoaderConfig) -> None:
    """The class entropy of the batches delivered, and of the shards, against chance."""
    label_of = np.zeros(int(rows["id"].max()) + 1, np.int64)  # label_of: (sample id,)
    label_of[rows["id"]] = rows["label"]
    in_order = sorted(parts, key=lambda part: (part.step, part.rank))
    labels = label_of[np.concatenate([part.ids for part in in_order])]
    num_steps = len(labels) // config.batch_size
    mix = class_mix(labels, np.full(num_steps, config.batch_size), MAX_SAMPLES)
    click.echo(f"class entropy of a batch {mix} ({mix.num_groups:,} of {num_steps:,} steps)")
    click.echo(f"class entropy within a shard {shard_mix(rows)}")


def _loader_config(options: EpochOptions, seed: int, num_images: int) -> LoaderConfig:
    batch_size = options.batch_size
    if batch_size is None:
        batch_size = _default_batch_size(num_images)
    training = options.split == "train"
    if training and batch_size > num_images:
        raise ValueError(
            f"--batch-size {batch_size} is over the {num_images} images of {options.split}: not "
            "one whole batch; use a smaller one"
        )
    return LoaderConfig(
        shards=Path(),  # none is read, wherever they are; `_delivered` names their folder
        batch_size=batch_size,
        split=options.split,
        seed=seed,
        training=training,
        lighting="off",  # needs no pca.json, and no id depends on it
        window=options.window,
        order=options.order,
        backend="numpy",
        world_size=options.world_size,
    )


def _order(dataset: Dataset, config: LoaderConfig, epoch: int) -> Rows:
    """The epoch's order, int64 (position,) of index rows."""
    sizes = [shard.samples for shard in dataset.split(config.split).shards]
    if config.order == "local":
        return local_order(sum(sizes), config.seed, epoch, config.batch_size, config.world_size)
    if config.training:
        return order(sizes, config.seed, epoch, config.window)
    return np.arange(sum(sizes))


def _delivered(config: LoaderConfig, epoch: int) -> list[Part]:
    """What the loaders of all ranks deliver, one after the other."""
    from pipeline.loader import Loader  # brings torch, which takes seconds

    parts: list[Part] = []
    with Progress("deliver", total=config.world_size, unit="rank") as progress:
        for rank in range(config.world_size):
            with Loader(replace(config, rank=rank)) as loader:
                loader.set_epoch(epoch)
                for step, batch in enumerate(loader):
                    parts.append(Part(step, rank, batch.ids.numpy()))
                    progress.show(rank, f"step {step + 1:,} of {len(loader):,}")
    return parts


def _default_batch_size(num_images: int) -> int:
    from trainer.config import default_batch_size  # brings torch, which takes seconds
    from trainer.presets import PRESETS

    return default_batch_size(PRESETS["modern"], num_images)


def _described(dataset: Dataset, options: EpochOptions, config: LoaderConfig) -> dict[str, Any]:
    """The first line of a ledger file."""
    return {
        "split": config.split,
        "epoch": options.epoch,
        "seed": config.seed,
        "window": config.window,
        "order": config.order,
        "global_batch": config.batch_size,
        "world_size": config.world_size,
        "order_version": ORDER_VERSION,
        "fingerprint": dataset.fingerprint(config.split),
        "delivered": options.deliver,  # by loaders; otherwise as the order has it
    }
