"""What a device can do at most, measured: products of matrices and bytes of memory a second."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.ceiling import StepClock
from trainer.preset import Preset
from trainer.summary import layer_sizes

SIDE = 8192  # of the matrices: large enough for any GPU of today
COPY_BYTES = 2**30
ROUNDS = 9
# Bytes that a step moves at least, in bf16 with float32 masters. Of a parameter: it is read (4)
# and rounded (2), read forward and backward (4), its gradient written and read (8), momentum and
# weight read and written (16). Of an element that a layer gives out: it and its gradient are
# written once and read once each, in two bytes.
BYTES_OF_PARAMETER = 34
BYTES_OF_OUTPUT = 8


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """multiply_adds, bytes: of a second, at most; bytes both read and written."""

    multiply_adds: float
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a training step has to do at least, for one image and for the step itself."""

    multiply_adds_of_image: float
    bytes_of_image: float
    bytes_of_step: float

    def shares(
        self, ceilings: Ceilings, images_per_second: float, batch_size: int
    ) -> dict[str, float]:
        """How much of each ceiling a speed uses, 0..1, and of both one after the other (ideal)."""
        products = self.multiply_adds_of_image * images_per_second / ceilings.multiply_adds
        moved = self.bytes_of_image + self.bytes_of_step / batch_size
        memory = moved * images_per_second / ceilings.bytes
        return {"matrix": products, "memory": memory, "ideal": products + memory}


def work_of(preset: Preset, num_classes: int) -> Work:
    """Of a preset's network: forward, and backward with two products of the same size.

    The first convolution needs no gradient of its input.
    """
    sizes = layer_sizes(preset, num_classes)
    forward = sum(size.num_multiply_adds for size in sizes)
    outputs = sum(math.prod(size.shape) for size in sizes)
    first = sum(size.num_multiply_adds for size in sizes if size.name == "conv1")
    return Work(
        multiply_adds_of_image=3 * forward - first,
        bytes_of_image=BYTES_OF_OUTPUT * outputs,
        bytes_of_step=BYTES_OF_PARAMETER * sum(size.num_parameters for size in sizes),
    )


def measure_ceilings(
    device: torch.device, *, side: int = SIDE, copy_bytes: int = COPY_BYTES
) -> Ceilings:
    """The best of several rounds: products of bf16 matrices, and a copy within memory.

    Of random numbers: on ones a GPU draws less power, and is faster than it ever is in training.
    """
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Ceilings(
        multiply_adds=side**3 / _least_seconds(lambda: torch.mm(a, b, out=product), device),
        bytes=2 * copy_bytes / _least_seconds(lambda: target.copy_(source), device),
    )


def _least_seconds(call: Callable[[], object], device: torch.device) -> float:
    call()
    clock = StepClock(device)
    clock.mark()
    for _ in range(ROUNDS):
        call()
        clock.mark()
    return min(clock.seconds())
