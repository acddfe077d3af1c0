"""Tensors and text in one safetensors file, and a checksum over both."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from isal import isal_zlib
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

DTYPES = {  # as safetensors calls them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
HEADER_MULTIPLE_BYTES = 8
MEND = "take another checkpoint, or delete it and train again: trainer/run.py --shards DIR"


def write_tensors(
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


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file; ValueError naming it where it is none."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a checkpoint in it, such as best.safetensors")
    try:
        data = path.read_bytes()  # at once: a training that goes on may put another in its place
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, header.get("__metadata__", {})
    except FileNotFoundError as error:
        trains = "trainer/run.py --shards DIR trains a network and saves it in its run folder"
        raise ValueError(f"{path}: no such checkpoint; {trains}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); {MEND}") from error


def checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Over the header and every tensor's name, dtype, shape and bytes: 0.05 s for a whole run."""
    value = isal_zlib.crc32(header.encode())
    for name, tensor in sorted(tensors.items()):
        kind = repr((name, str(tensor.dtype), tuple(tensor.shape)))
        value = isal_zlib.crc32(kind.encode(), value)
        value = isal_zlib.crc32(_bytes_of(tensor), value)
    return f"{value:08x}"
