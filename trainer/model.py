"""AlexNet: five convolutions in two columns, three fully-connected layers (paper §3.5)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.draws import CROP_PX
from trainer.layers import (
    Normalise,
    ResponseNorm,
    dropout_mask,
    mask_and_halve,
    random_source,
)
from trainer.presets import Preset

NUM_COLUMNS = 2
PAD_PX = 3  # right and bottom only: 224 -> 227, so that conv1 gives 55x55 maps (2012 convdata.py)
POOL5_PX = 6
ONES_BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")  # paper §5


def scaled(size: int, width: float) -> int:
    """`size` times `width`, rounded to the nearest even number (ties down), at least 2.

    Even, because the channels of every layer are shared out to two columns.
    """
    return max(NUM_COLUMNS, NUM_COLUMNS * math.ceil(size * width / NUM_COLUMNS - 0.5))


class AlexNet(nn.Module):
    """The network of a preset; its normalisation is its first step and part of its state.

    Built with PyTorch's own random weights: call `initialise` and `normalise.fill`, or load a
    state. ValueError for a width that is not a positive number.
    """

    def __init__(self, preset: Preset, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(width) and width > 0):
            raise ValueError(f"--width is {width}, must be a number more than 0")
        self.preset, self.num_classes, self.width = preset, num_classes, width
        c1, c2, c3, c4, c5 = (scaled(size, width) for size in (96, 256, 384, 384, 256))
        hidden = scaled(4096, width)
        self.normalise = Normalise(at_crop=preset.mean == "image-at-crop")
        self.conv1 = nn.Conv2d(3, c1, 11, stride=4)
        self.norm1 = _norm(preset, c1)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=NUM_COLUMNS)
        self.norm2 = _norm(preset, c2)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, groups=NUM_COLUMNS)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, groups=NUM_COLUMNS)
        self.fc6 = nn.Linear(c5 * POOL5_PX * POOL5_PX, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, num_classes)
        self.pool = nn.MaxPool2d(3, 2)  # overlapping (paper §3.4)

    def initialise(self, seed: int) -> None:
        """Sets weights and biases; those of a layer are a function of (seed, layer name)."""
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weight = torch.empty(layer.weight.shape)
                source = random_source("cpu", seed, "weights", name)
                if self.preset.init == "normal":
                    nn.init.normal_(weight, 0, self.preset.init_std, generator=source)
                else:
                    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=source)
                ones = self.preset.ones_biases and name in ONES_BIASES
                assert layer.bias is not None
                with torch.no_grad():
                    layer.weight.copy_(weight)
                    layer.bias.fill_(float(ones))

    def place(self, device: torch.device) -> "AlexNet":
        """Moves itself to `device`, kernels in channels-last memory; returns itself."""
        self.to(device)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self

    def dropout_masks(
        self, seed: int, step: int, num_images: int, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """The masks of fc6 and fc7 in a step, (num_images, hidden) each; None without dropout."""
        if not self.preset.dropout:
            return None, None
        shape = num_images, self.fc6.out_features
        return (
            dropout_mask(seed, step, "fc6", shape, device),
            dropout_mask(seed, step, "fc7", shape, device),
        )

    def forward(
        self, images: Tensor, crop: Tensor, masks: tuple[Tensor | None, Tensor | None] | None
    ) -> Tensor:
        """Logits (batch, classes).

        images: (batch, 3, 224, 224) in 0..255 units; crop: (batch, 3) = x, y, flip; masks: of
        `dropout_masks` in training, None in test.
        """
        assert self.training == (masks is not None)
        x = F.pad(self.normalise(images, crop), (0, PAD_PX, 0, PAD_PX))
        x = self.pool(self.norm1(_relu(self.conv1(x))))
        x = self.pool(self.norm2(_relu(self.conv2(x))))
        x = _relu(self.conv3(x))
        x = _relu(self.conv4(x))
        x = self.pool(_relu(self.conv5(x)))
        x = self._dropout(_relu(self.fc6(x.flatten(1))), masks, 0)
        x = self._dropout(_relu(self.fc7(x)), masks, 1)
        logits: Tensor = self.fc8(x)
        return logits

    def _dropout(
        self, x: Tensor, masks: tuple[Tensor | None, Tensor | None] | None, layer: int
    ) -> Tensor:
        if not self.preset.dropout:
            return x
        return mask_and_halve(x, None if masks is None else masks[layer])


def _norm(preset: Preset, num_channels: int) -> nn.Module:
    if preset.norm == "batch":
        return nn.BatchNorm2d(num_channels)
    return ResponseNorm(
        size=preset.response_size,
        k=preset.response_k,
        alpha=preset.response_alpha,
        beta=preset.response_beta,
        columns=NUM_COLUMNS,
    )


def _relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


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

    for layer in network.children():
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
    lines = [f"{'layer':<10} {'kind':<13} {'output':<13} {'parameters':>12} {'multiply-adds':>14}"]
    for size in sizes:
        shape = "x".join(str(axis) for axis in size.shape)
        lines.append(
            f"{size.name:<10} {size.kind:<13} {shape:<13} {size.num_parameters:>12,} "
            f"{size.num_multiply_adds:>14,}"
        )
    parameters = sum(size.num_parameters for size in sizes)
    multiply_adds = sum(size.num_multiply_adds for size in sizes)
    lines.append(f"{'total':<38} {parameters:>12,} {multiply_adds:>14,}")
    return "\n".join(lines)
