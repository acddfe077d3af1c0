"""Save and load a run, in one file, atomically: safetensors, with the rest as JSON in its header.

The parameters are those of the single-process network whatever trained them, in plain memory
order, under `model.<name>`; momentum under `momentum.<name>`, the moving average of the weights
under `ema.<name>`. Nothing in the file can run code.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.atomic import write_whole
from trainer.model import AlexNet
from trainer.override import preset_from_dict

FORMAT_VERSION = 2  # 2: preset by owner, rates by group
HEADER_KEY = "fullfeed"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run at a moment. JSON-able: everything but the tensors."""

    model: dict[str, Tensor]  # parameters and buffers
    momentum: dict[str, Tensor]  # by parameter name; empty before the first step
    config: dict[str, Any]  # the run's configuration: preset, width, classes, seed, fingerprints
    progress: dict[str, Any]  # epoch, step, what the epoch has summed up so far, the best error
    schedule: dict[str, Any]
    loader: dict[str, Any]  # position of the next batch
    made_by: dict[str, Any]  # versions, backend; told, never compared
    ema: dict[str, Tensor] = field(default_factory=dict)  # by name as in `model`; empty without
    arithmetic: dict[str, Any] = field(default_factory=dict)  # the scale of fp16; empty without

    @property
    def tested(self) -> dict[str, Tensor]:
        """Parameters and buffers of what was validated: the averaged ones where there are some."""
        return self.ema or self.model


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file whole or not at all; OSError as the file system raises it."""
    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
    tensors |= {f"momentum.{name}": tensor for name, tensor in checkpoint.momentum.items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in checkpoint.ema.items()}
    header = {
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config,
        "progress": checkpoint.progress,
        "schedule": checkpoint.schedule,
        "loader": checkpoint.loader,
        "made_by": checkpoint.made_by,
        "arithmetic": checkpoint.arithmetic,
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, allow_nan=False)
    write_whole(path, save(plain, metadata={HEADER_KEY: text}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote, onto the CPU.

    ValueError naming the file where it is absent, cut short, or not a checkpoint of this project.
    """
    mend = "take another checkpoint, or delete it and train again: trainer/run.py --shards DIR"
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            for name in file.keys():
                tensors[name] = file.get_tensor(name)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such checkpoint; {mend}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); {mend}") from error
    if HEADER_KEY not in metadata:
        raise ValueError(f"{path}: no {HEADER_KEY!r} header, not made by this trainer; {mend}")
    header = json.loads(metadata[HEADER_KEY])
    if header["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is {header['format_version']}, expected {FORMAT_VERSION}; "
            f"{mend}"
        )
    return Checkpoint(
        model=_part(tensors, "model."),
        momentum=_part(tensors, "momentum."),
        ema=_part(tensors, "ema."),
        **{name: value for name, value in header.items() if name != "format_version"},
    )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def restore_model(checkpoint: Checkpoint, device: torch.device) -> AlexNet:
    """The checkpoint's network, ready to predict on `device`; with the averaged weights if any."""
    config = checkpoint.config
    preset = preset_from_dict(config["preset"])
    model = AlexNet(preset, len(config["classes"]), config["width"])
    load_model(model, replace(checkpoint, model=checkpoint.tested))
    return model.place(device).eval()


def load_model(model: AlexNet, checkpoint: Checkpoint) -> None:
    """Copies the checkpoint's parameters and buffers in; ValueError naming what does not fit."""
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | checkpoint.model.keys()):
        found, expected = (
            tuple(tensors[name].shape) if name in tensors else "none"
            for tensors in (checkpoint.model, wanted)
        )
        if found != expected:
            raise ValueError(
                f"checkpoint and network differ: {name} has shape {found} in the checkpoint, "
                f"{expected} in the network"
            )
    model.load_state_dict(checkpoint.model)


def require_classes(checkpoint: Checkpoint, classes: tuple[str, ...], where: str) -> None:
    """ValueError naming what differs unless the checkpoint's classes are those of a dataset."""
    own = tuple(checkpoint.config["classes"])
    if own == classes:
        return
    if len(own) != len(classes):
        raise ValueError(
            f"the checkpoint knows {len(own)} classes, {where} has {len(classes)}; take shards of "
            f"the data it was trained on"
        )
    first = next(i for i in range(len(own)) if own[i] != classes[i])
    raise ValueError(
        f"class {first} is {own[first]!r} in the checkpoint, {classes[first]!r} in {where}; take "
        f"shards of the data it was trained on"
    )
