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
from typing import Any, BinaryIO

import torch
from isal import isal_zlib
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.atomic import whole_file
from trainer.config import differences
from trainer.model import AlexNet
from trainer.override import preset_from_dict

FORMAT_VERSION = 2  # 2: preset by owner, rates by group
HEADER_KEY = "fullfeed"
CRC_KEY = "crc32"
INITIAL_FIELDS = ("init", "init_std", "deep_init_std", "ones_biases")  # of no use to a trained one
DTYPES = {  # as safetensors calls them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
HEADER_MULTIPLE_BYTES = 8
MEND = "take another checkpoint, or delete it and train again: trainer/run.py --shards DIR"


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
    metadata = {HEADER_KEY: text, CRC_KEY: _crc32(text, plain)}
    with whole_file(path) as file:
        _write_safetensors(file, plain, metadata)


def _write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Length of the header, header, numbers: https://huggingface.co/docs/safetensors.

    Tensor by tensor, since the library's own writer either keeps every other thread waiting
    meanwhile (`save`) or writes to a name of its own (`save_file`; version 0.8).
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # none misaligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end_bytes = 0
    for name in order:
        start_bytes, end_bytes = end_bytes, end_bytes + tensors[name].nbytes
        header[name] = {
            "dtype": DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start_bytes, end_bytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % HEADER_MULTIPLE_BYTES)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(_bytes_of(tensors[name]))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote, onto the CPU.

    ValueError naming the file where it is absent, cut short, changed since it was written, or not
    a checkpoint of this project.
    """
    tensors, metadata = _read(path)
    if HEADER_KEY not in metadata:
        raise ValueError(f"{path}: no {HEADER_KEY!r} header, not made by this trainer; {MEND}")
    text = metadata[HEADER_KEY]
    if _crc32(text, tensors) != metadata.get(CRC_KEY):
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


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file; ValueError naming it where it is none."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a checkpoint in it, such as best.safetensors")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such checkpoint; {MEND}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); {MEND}") from error


def _crc32(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Over the header and every tensor's name, dtype, shape and bytes: 0.05 s for a whole run."""
    value = isal_zlib.crc32(header.encode())
    for name, tensor in sorted(tensors.items()):
        kind = repr((name, str(tensor.dtype), tuple(tensor.shape)))
        value = isal_zlib.crc32(kind.encode(), value)
        value = isal_zlib.crc32(_bytes_of(tensor), value)
    return f"{value:08x}"


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
