"""What each layer of a network gives out and costs, without memory for its weights."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.draws import CROP_PX
from trainer.model import AlexNet
from trainer.preset import Preset


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """What one layer gives out and costs for one image."""

    name: str
    kind: str
    shape: tuple[int, ...]  # of the output, without the batch axis
    num_parameters: int
    num_multiply_adds: int  # of convolutions and fully-connected layers, biases aside


def layer_sizes(preset: Preset, num_classes: int, width: float = 1.0) -> list[LayerSize]:
    """The layers of a network in the order of execution, without memory for its weights."""
    sizes: list[LayerSize] = []
    with torch.device("meta"):
        network = AlexNet(preset, num_classes, width).eval()
    names = {layer: name for name, layer in network.named_children()}
    names = {layer: name for layer, name in names.items() if not isinstance(layer, nn.Identity)}

    def note(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        weights = 0
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weights = layer.weight.numel() * math.prod(output.shape[2:])
        sizes.append(
            LayerSize(
                name=names[layer],
                kind=type(layer).__name__,
                shape=tuple(output.shape[1:]),
                num_parameters=sum(p.numel() for p in layer.parameters()),
                num_multiply_adds=weights,
            )
        )

    for layer in names:
        layer.register_forward_hook(note)
    with torch.no_grad():
        network(
            torch.empty(1, 3, CROP_PX, CROP_PX, device="meta"),
            torch.empty(1, 3, dtype=torch.int32, device="meta"),
            None,
        )
    return sizes


def summary(preset: Preset, num_classes: int, width: float = 1.0) -> str:
    """A table of the layers: output shape, parameters, multiply-adds per image."""
    sizes = layer_sizes(preset, num_classes, width)
    lines = [f"{'layer':<10} {'kind':<15} {'output':<13} {'parameters':>12} {'multiply-adds':>14}"]
    for size in sizes:
        shape = "x".join(str(axis) for axis in size.shape)
        lines.append(
            f"{size.name:<10} {size.kind:<15} {shape:<13} {size.num_parameters:>12,} "
            f"{size.num_multiply_adds:>14,}"
        )
    parameters = sum(size.num_parameters for size in sizes)
    multiply_adds = sum(size.num_multiply_adds for size in sizes)
    total = f"total, {num_classes:,} classes"
    lines.append(f"{total:<40} {parameters:>12,} {multiply_adds:>14,}")
    return "\n".join(lines)
