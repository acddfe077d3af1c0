"""Save and load a run, in one file, atomically: safetensors, with the rest as JSON in its header.

The parameters are those of the single-process network whatever trained them, in plain memory
order, under `model.<name>`; momentum under `momentum.<name>`, the moving average of the
weights under `ema.<name>`. Nothing in the file can run code. A CRC-32 of all that, beside the
header, tells at loading whether a bit has changed since.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.atomic import whole_file
from trainer.description import differences
from trainer.model import AlexNet
from trainer.override import preset_from_dict
from trainer.tensor_file import MEND, checksum, read_tensors, write_tensors

FORMAT_VERSION = 2  # 2: preset by owner, rates by group
HEADER_KEY = "fullfeed"
CRC_KEY = "crc32"
INITIAL_FIELDS = ("init", "init_std", "deep_init_std", "ones_biases")  # of no use to a trained one


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


def in_host_memory(checkpoint: Checkpoint) -> Checkpoint:
    """The same with copies of its tensors, which the next step does not change."""
    copied = {
        part: {
            name: tensor.detach().to("cpu", non_blocking=True, copy=True)
            for name, tensor in tensors.items()
        }
        for part, tensors in vars(checkpoint).items()
        if part in ("model", "momentum", "ema")
    }
    if any(tensor.is_cuda for tensor in checkpoint.model.values()):
        torch.cuda.current_stream().synchronize()  # until the copies are there
    return replace(checkpoint, **copied)


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
    metadata = {HEADER_KEY: text, CRC_KEY: checksum(text, plain)}
    with whole_file(path) as file:
        write_tensors(file, plain, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote, onto the CPU.

    ValueError naming the file where it is absent, cut short, changed since it was written, or not
    a checkpoint of this project.
    """
    tensors, metadata = read_tensors(path)
    if HEADER_KEY not in metadata:
        raise ValueError(f"{path}: no {HEADER_KEY!r} header, not made by this trainer; {MEND}")
    text = metadata[HEADER_KEY]
    if checksum(text, tensors) != metadata.get(CRC_KEY):
        raise ValueError(
            f"{path} is damaged: its {CRC_KEY} is not the one it was written with; {MEND}"
        )
    header = json.loads(text)
    if header["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is {header['format_version']}, expected {FORMAT_VERSION}; "
            f"{MEND}"
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
    """Copies the checkpoint's parameters and buffers in.

    ValueError naming what differs where they are of another network: all that its configuration
    says, also what no shape shows (an activation, a response norm); else the first shape.
    """
    if different := network_differences(checkpoint, model):
        raise ValueError(f"the checkpoint is of another network: {'; '.join(different)}")
    load_tensors(model, checkpoint.model)


def load_tensors(model: AlexNet, tensors: Mapping[str, Tensor]) -> None:
    """Copies parameters and buffers in, a rank's part of each where ranks share the network out.

    ValueError naming the first whose shape does not fit.
    """
    wanted = {
        name: model.layout.whole_shape(name, tensor) for name, tensor in model.state_dict().items()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        found, expected = shapes.get(name, "none"), wanted.get(name, "none")
        if found != expected:
            raise ValueError(
                f"checkpoint and network differ: {name} has shape {found} in the checkpoint, "
                f"{expected} in the network"
            )
    model.load_state_dict(model.layout.part_state(dict(tensors)))


def network_differences(
    checkpoint: Checkpoint, model: AlexNet, *, new_head: bool = False
) -> list[str]:
    """What a checkpoint's network and a model differ in, once its weights are no longer initial.

    new_head: the last layer, and with it the number of classes, does not matter.
    """
    config = checkpoint.config
    own = _network(config["preset"], config["width"])
    asked = _network(model.preset.to_dict(), model.width)
    if not new_head:
        own["num_classes"], asked["num_classes"] = len(config["classes"]), model.num_classes
    return differences(own, asked)


def _network(preset: Mapping[str, Any], width: float) -> dict[str, Any]:
    network = {k: v for k, v in preset["network"].items() if k not in INITIAL_FIELDS}
    mean = preset["augmentation"]["mean"]
    return {"network": network, "augmentation": {"mean": mean}, "width": width}


def require_classes(
    checkpoint: Checkpoint,
    classes: tuple[str, ...],
    where: str,
    name: str = "the checkpoint",
    mend: str = "take shards of the data it was trained on",
) -> None:
    """ValueError naming what differs unless the checkpoint's classes are those of a dataset.

    where, name: what the message calls the dataset and the checkpoint; mend: what it advises.
    """
    own = tuple(checkpoint.config["classes"])
    if len(own) != len(classes):
        raise ValueError(f"{name} knows {len(own)} classes, {where} has {len(classes)}; {mend}")
    for i, (mine, theirs) in enumerate(zip(own, classes, strict=True)):
        if mine != theirs:
            raise ValueError(f"class {i} is {mine!r} in {name}, {theirs!r} in {where}; {mend}")


def require_finite(checkpoint: Checkpoint, name: str) -> None:
    """ValueError where what was validated holds a NaN or an infinity: it would predict nothing.

    name: what the message calls the checkpoint.
    """
    for tensor_name, tensor in checkpoint.tested.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{name}: {tensor_name} holds values that are not finite numbers, so its training "
                f"diverged; {MEND}"
            )
