"""What joins the ranks of a run, and from which batch on it carries gradients beside backward."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch

from trainer.collectives import Group

GPUS = torch._C._autograd.DeviceType.CUDA
GRADIENTS = 58_621_952  # values: of the weights of fc6, fc7 and fc8, which every rank of two sends
BACKWARD_SECONDS = 7.7e-6  # of an image on an H200: two thirds of a step's 1 / 86,000 s


@dataclass(frozen=True)
class Link:
    """The slowest between any two ranks.

    bytes_per_second: of an exchange, as such links are sold, not measured; None where the
    processors that compute carry it themselves, so that nothing goes on beside it.
    """

    name: str
    bytes_per_second: float | None

    def hides_from(self, value_bytes: int) -> float:
        """Images of a rank whose backward takes as long as the exchange of the gradients of the
        fully-connected layers, which are complete first. value_bytes: of a gradient that travels.
        """
        if self.bytes_per_second is None:
            return math.inf
        return GRADIENTS * value_bytes / self.bytes_per_second / BACKWARD_SECONDS


NVLINK = Link("NVLink", 400e9)
PCI_EXPRESS = Link("PCI Express", 50e9)
HOST_MEMORY = Link("host memory", 20e9)
NETWORK = Link("a network", 10e9)
PROCESSORS = Link("this machine's processors", None)
LINKS = (NVLINK, PCI_EXPRESS, HOST_MEMORY, NETWORK, PROCESSORS)
Between = Callable[[int, int], bool]


def find_link(ranks: Group, device: torch.device, *, one_machine: bool) -> Link:
    """What the first rank finds, on all of them; every rank calls it."""
    if not one_machine:
        return NETWORK
    if device.type != "cuda":
        return PROCESSORS
    found = between_gpus(
        ranks.size, torch.cuda.device_count(), torch.cuda.can_device_access_peer, have_nvlink
    )
    return LINKS[int(ranks.broadcast(torch.tensor(LINKS.index(found))))]


def between_gpus(num_ranks: int, num_gpus: int, peers: Between, nvlink: Between) -> Link:
    """Of ranks on the first GPUs of a machine; by host memory where they share one.

    peers, nvlink: whether two GPUs, by their numbers, reach each other's memory, and how.
    """
    if num_gpus < num_ranks:
        return HOST_MEMORY
    pairs = list(combinations(range(num_ranks), 2))
    if all(nvlink(one, other) for one, other in pairs):
        return NVLINK
    return PCI_EXPRESS if all(peers(one, other) for one, other in pairs) else HOST_MEMORY


def have_nvlink(one: int, other: int) -> bool:
    """Whether NVLink joins two GPUs; False where this PyTorch does not tell."""
    detect = getattr(torch._C._distributed_c10d, "_detect_dma_connectivity", None)
    try:
        return detect is not None and bool(detect(GPUS, "nvlink").matrix[one][other])
    except (RuntimeError, IndexError):
        return False
