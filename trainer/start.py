"""A network at its first step: its weights drawn, or those of another run (paper §6.1, CNN*)."""

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from pipeline.moments import Statistics
from trainer.checkpoint import (
    load_checkpoint,
    load_tensors,
    network_differences,
    require_classes,
    require_finite,
)
from trainer.config import WIRE_DTYPES, RunConfig
from trainer.architecture import scaled
from trainer.link import find_link
from trainer.model import AlexNet
from trainer.origin import needs_origin
from trainer.parallel import ALONE, Layout, build_layout, choose_mode
from trainer.preset import Preset
from trainer.summary import layer_sizes
from trainer.world import World

HEAD = "fc8."
BYTES_PER_PARAMETER = 12  # float32: the weight, its gradient and its momentum
OTHER_CLASSES = "give --replace-head for a new last layer, or take shards of the same classes"


def build_model(
    preset: Preset,
    classes: tuple[str, ...],
    config: RunConfig,
    statistics: Statistics,
    layout: Layout = ALONE,
) -> AlexNet:
    """The network with the initial weights of the seed and the normalisation of the shards.

    With --init-from both come from that checkpoint, unless the run goes on from one of its own.
    layout: this rank holds its part. ValueError where the network is larger than the memory of
    this machine.
    """
    require_memory(preset, len(classes), config.width, psutil.virtual_memory().total)
    model = AlexNet(preset, len(classes), config.width, layout)
    model.initialise(config.seed)
    channel = preset.augmentation.mean == "channel"
    mean = statistics.mean if channel else statistics.mean_image
    model.normalise.fill(_tensor(mean), _tensor(statistics.std))
    if config.init_from is not None and needs_origin(config):
        load_pretrained(model, config.init_from, classes, replace_head=config.replace_head)
    return model


def require_memory(preset: Preset, num_classes: int, width: float, memory_bytes: int) -> None:
    """ValueError where the parameters do not fit into that memory; maps and images come on top."""
    sizes = layer_sizes(preset, num_classes, width)
    num_parameters = sum(size.num_parameters for size in sizes)
    needed_bytes = num_parameters * BYTES_PER_PARAMETER
    if needed_bytes > memory_bytes:
        raise ValueError(
            f"the network has {num_parameters:,} parameters, with gradients and momentum "
            f"{needed_bytes / 1e9:,.1f} GB; this machine has {memory_bytes / 1e9:,.1f} GB. Choose "
            f"a smaller --width, network.channels or network.hidden"
        )


def find_layout(
    config: RunConfig, preset: Preset, world: World, precision: str
) -> tuple[Layout, str]:
    """Who holds what, and why, in words ("" where this process is alone).

    All ranks call it. ValueError where they cannot share the network out as asked.
    """
    if world.size == 1:
        return ALONE, ""
    if config.overfit:
        raise ValueError("--overfit trains in one process; give --processes 1")
    hidden6, hidden7 = (scaled(size, config.width) for size in preset.network.hidden)
    mode, reason = choose_mode(
        config.parallel,
        preset,
        world.size,
        link=find_link(world.ranks, world.device, one_machine=world.one_machine),
        value_bytes=2 if WIRE_DTYPES[config.wire] else 4,
        hidden=(hidden6, hidden7),
        skips_steps=precision == "fp16",
    )
    return build_layout(mode, world.device), f"{world.size} processes, {mode}: {reason}"


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def load_pretrained(
    model: AlexNet, path: Path, classes: tuple[str, ...], *, replace_head: bool
) -> None:
    """Copies a checkpoint's weights and normalisation into a network that was just initialised.

    The averaged weights where the other run kept them. With `replace_head` the last layer, and so
    the classes, stay the network's own. ValueError naming what differs where the checkpoint is of
    another network, mean, width or classes, or has weights that are no numbers.
    """
    checkpoint = load_checkpoint(path)
    require_finite(checkpoint, f"--init-from {path}")
    if different := network_differences(checkpoint, model, new_head=True):
        raise ValueError(
            f"--init-from {path} is another network: {'; '.join(different)}. Ask for the same "
            f"with --preset, --config, --set and --width"
        )
    tensors = dict(checkpoint.tested)
    if not replace_head:
        name = f"--init-from {path}"
        require_classes(checkpoint, classes, "the shard folder", name, OTHER_CLASSES)
    else:
        state = model.layout.whole_state(model.state_dict())
        tensors |= {name: value for name, value in state.items() if name.startswith(HEAD)}
    load_tensors(model, tensors)
