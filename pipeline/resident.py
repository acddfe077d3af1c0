"""The decoded split kept in memory: where it fits, and what of it is there already.

Nothing is decoded twice: an image is decoded, on threads of the CPU, when it first comes up, and
kept whole, 256x256. What is shown of it is cut from there, so order, draws and pixels are those of
raw shards, bit for bit, whatever was kept when.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from pipeline.images import SIZE_PX
from pipeline.order import Rows
from pipeline.shared_memory import folder_bytes, shared_array
from pipeline.subsampled import SUBSAMPLED_BYTES

RESIDENT = ("device", "host", "none", "auto")
IMAGE_BYTES = SIZE_PX * SIZE_PX * 3
FORMATS: Mapping[str, tuple[int, ...]] = {  # the shape of an image that is kept
    "rgb": (SIZE_PX, SIZE_PX, 3),
    "yuv420": (SUBSAMPLED_BYTES,),
}
HOST_SHARE = 0.8  # of the memory that is free: the rest is for readers, buffers and others
# What training takes of a GPU besides, for AlexNet with response norm in float32, of which the
# forward pass keeps most (computed from its layers, not measured on a GPU): weights, momentum,
# gradients and cuDNN's workspace, and per image of a rank's batch the maps between layers.
TRAINING_BYTES = 3 * 2**30
TRAINING_IMAGE_BYTES = 16 * 2**20
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # cgroup 2, cgroup 1


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a split takes where it is kept, in bytes.

    device: of each rank on its GPU, None without one. host: of all ranks of a machine together.
    device_host: of the host's memory, where the GPUs of several ranks keep a share each.
    """

    device: int | None
    host: int
    device_host: int


@dataclass(frozen=True)
class Residence:
    """Where a split is kept, "device", "host" or "none", and why there."""

    where: str
    reason: str


def needs(
    num_images: int,
    *,
    on_gpu: bool,
    num_ranks: int,
    image_bytes: int = IMAGE_BYTES,
    apart: bool = False,
    num_ahead: int = 0,
) -> Needs:
    """Of `num_images` decoded images; each of `num_ranks` keeps its share on its GPU.

    A rank takes images that another one keeps from the host's memory, so all are there as well,
    unless `apart`: each rank shows nothing but its own. num_ahead: images of the steps a rank
    prepares ahead for its GPU, for which it has room on both sides, besides.
    """
    whole, ahead = num_images * image_bytes, num_ahead * image_bytes
    return Needs(
        device=share_of(num_images, num_ranks) * image_bytes + ahead if on_gpu else None,
        host=whole,
        device_host=(whole if num_ranks > 1 and not apart else 0) + num_ranks * ahead,
    )


def find_residence(
    asked: str, needed: Needs, *, free_device_bytes: int, free_host_bytes: int
) -> Residence:
    """Where to keep a split; asked: "device", "host" or "auto", the first that has the room.

    free_device_bytes: of the rank's GPU beside training. ValueError where what is asked for does
    not fit.
    """
    lacking = []
    if asked in ("device", "auto"):
        if needed.device is None:
            lacking.append("there is no GPU among the batches' devices")
        elif needed.device > free_device_bytes:
            lacking.append(_lacks("the GPU's memory", needed.device, free_device_bytes))
        elif needed.device_host > free_host_bytes:
            lacking.append(_lacks("the host's memory", needed.device_host, free_host_bytes))
        else:
            told = f"{_size(needed.device)} of decoded images on the GPU"
            return Residence("device", f"{told}, {_size(free_device_bytes)} free")
    if asked in ("host", "auto"):
        if needed.host <= free_host_bytes:
            told = f"{_size(needed.host)} of decoded images in the host's memory"
            return Residence("host", f"{told}, {_size(free_host_bytes)} free")
        lacking.append(_lacks("the host's memory", needed.host, free_host_bytes))
    if asked == "auto":
        return Residence("none", "; ".join(lacking))
    raise ValueError(
        f"--resident {asked}: {'; '.join(lacking)}; leave it out, or take --resident auto"
    )


def share_of(num_images: int, num_ranks: int) -> int:
    """The most images that one of `num_ranks` keeps: image i is kept by rank i % num_ranks."""
    return -(-num_images // num_ranks)


def free_host_bytes(num_ranks: int) -> int:
    """What may be kept in the host's memory, within what a container allows.

    Of what is free; where `num_ranks` ranks share it, of all there is, so that they decide alike
    although one comes first: whether it can be had is seen when it is taken.
    """
    memory = psutil.virtual_memory()
    limit = _container_bytes(CGROUP_ROOT)
    if num_ranks == 1:
        return int(HOST_SHARE * max(0, min(memory.available, limit - _own_bytes())))
    return int(HOST_SHARE * min(memory.total, limit, folder_bytes()))


def free_device_bytes(device: torch.device, rows_of_rank: int) -> int:
    """What may be kept in a GPU's memory beside training on `rows_of_rank` images a step."""
    if device.type != "cuda":
        return 0
    free: int = torch.cuda.mem_get_info(device)[0]
    return max(0, free - TRAINING_BYTES - rows_of_rank * TRAINING_IMAGE_BYTES)


class HostStore:
    """Decoded images by their index row, in the host's memory, and which of them are there.

    images: uint8 (rows, 256, 256, 3), or of another of FORMATS. shared: whether the ranks of this
    machine, and the loaders of a process, have one in common; otherwise it is this object's own.
    An image may be put by several at once: they all put the same bytes. OSError where the memory
    cannot be had.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        shared: str | None,
        num_users: int = 1,
        image_format: str = "rgb",
    ) -> None:
        """shared: a name that all who share it have in common. num_users: how many they are."""
        shape = (num_rows, *FORMATS[image_format])
        image_bytes = math.prod(FORMATS[image_format])
        self.images: NDArray[np.uint8]
        self._known: NDArray[np.uint8]
        if shared is None:
            self.images = np.empty(shape, np.uint8)  # taken from the system as it is written
            self._known = np.zeros(num_rows, np.uint8)
        else:
            memory = shared_array(shared, num_rows * (image_bytes + 1), num_users)
            self.images = memory[: num_rows * image_bytes].reshape(shape)
            self._known = memory[num_rows * image_bytes :]

    def known(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of these index rows are there, (N,)."""
        found: NDArray[np.bool_] = self._known[rows] != 0
        return found

    def put(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """Keeps an image in the store's format; whoever sees it as known sees all of it.

        (The copy ends before the mark is set: NumPy lets go of and takes the interpreter's lock
        around it, or holds it, which orders them for other processors too.)
        """
        self.images[row] = pixels
        self._known[row] = 1


def _container_bytes(root: Path) -> int:
    """The memory limit of this container; without one, more than any machine has."""
    for name in CGROUP_LIMITS:
        path = root / name
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            return int(text)
    return 1 << 62


def _own_bytes() -> int:
    used: int = psutil.Process(os.getpid()).memory_info().rss
    return used


def _lacks(what: str, needed: int, free: int) -> str:
    return f"{_size(needed)} of decoded images do not fit into {what}, {_size(free)} left for them"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.0f} MB"
