"""The paper's update rule on top of torch's SGD.

torch keeps b <- m b + (g + d w), w <- w - e b. The paper (§5) keeps v <- m v - d e w - e g,
w <- w + v. With v = -e b they are the same rule while the learning rate e stands still. When it
moves, the paper keeps v, torch keeps b: multiplying b by e_old / e_new makes them equal again.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.preset import LayerRate, Preset, Training


def build_optimizer(
    model: nn.Module, preset: Preset, *, fused: bool = False
) -> torch.optim.SGD:
    """SGD with the preset's momentum and weight decay; its rates are set before each step.

    Its groups, by `name`: "matrices" (and kernels) and "vectors" (biases and the parameters of
    batch norm), and two of its own for each layer with a rate of its own, such as
    "conv1.vectors". Each knows its `layer` ("" for the rest) and the `factor` of its kind.
    fused: all in one kernel, which knows of scaled gradients. ValueError where the preset's
    `layer_rates` freeze all layers at once.
    """
    training = preset.training
    own = {rate.layer for rate in training.layer_rates}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        layer = name.partition(".")[0]
        layer = layer if layer in own else ""
        kind = "vectors" if parameter.ndim == 1 else "matrices"
        group = f"{layer}.{kind}" if layer else kind
        if group not in groups:
            groups[group] = _settings(training, kind) | {"name": group, "layer": layer}
        groups[group]["params"].append(parameter)
    _require_learning(training.layer_rates, {group["layer"] for group in groups.values()})
    return torch.optim.SGD(
        list(groups.values()),
        lr=training.learning_rate,
        momentum=training.momentum,
        nesterov=training.nesterov,
        fused=fused or None,
    )


def _require_learning(rates: tuple[LayerRate, ...], layers: set[str]) -> None:
    for epoch in sorted({rate.epoch for rate in rates}):
        if not any(layer_factor(rates, layer, epoch) for layer in layers):
            raise ValueError(
                f"training.layer_rates freeze every layer from epoch {epoch} on: nothing would "
                f"learn; leave one of them a factor over 0"
            )


def _settings(training: Training, kind: str) -> dict[str, Any]:
    if kind == "matrices":
        return {"params": [], "factor": 1.0, "weight_decay": training.weight_decay}
    decay = training.weight_decay if training.decay_vectors else 0.0
    return {"params": [], "factor": training.vector_rate_factor, "weight_decay": decay}


def set_learning_rates(
    optimizer: torch.optim.SGD, rate: float, epoch: int, training: Training
) -> None:
    """Sets the rate of every group for a step of `epoch` (from 0) at the schedule's `rate`.

    With `rescale_momentum` the paper's velocity v survives a change. A group that goes to 0, or
    comes from 0, keeps its buffer: v cannot be told from b there. A group at 0 is frozen: it has
    no gradient, so neither its weights nor its velocity move, and it does not decay.
    """
    for group in optimizer.param_groups:
        factor = layer_factor(training.layer_rates, group["layer"], epoch) * group["factor"]
        old, new = group["lr"], rate * factor
        group["lr"] = new
        for parameter in group["params"]:
            if parameter.requires_grad != (new > 0):
                parameter.requires_grad_(new > 0)
                parameter.grad = None
        if training.rescale_momentum and new != old and new and old:
            _scale_momentum(optimizer, group, old / new)


def _scale_momentum(optimizer: torch.optim.SGD, group: dict[str, Any], factor: float) -> None:
    for parameter in group["params"]:
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            buffer.mul_(factor)


def layer_factor(rates: tuple[LayerRate, ...], layer: str, epoch: int) -> float:
    """What a layer's rate is of the schedule's in `epoch`, from 0: the last entry says."""
    factors = [rate.factor for rate in rates if rate.layer == layer and rate.epoch <= epoch]
    return factors[-1] if factors else 1.0


def momentum_state(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """The momentum buffers by parameter name; empty before the first step."""
    buffers = {
        name: optimizer.state[parameter].get("momentum_buffer")
        for name, parameter in model.named_parameters()
    }
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def learning_rates(optimizer: torch.optim.SGD) -> dict[str, float]:
    """The rate of each group by its name."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def load_momentum(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    momentum: dict[str, Tensor],
    rates: dict[str, float],
) -> None:
    """The inverse of `momentum_state`; `rates`: the `learning_rates` the buffers belong to."""
    for name, parameter in model.named_parameters():
        if name in momentum:
            buffer = torch.empty_like(parameter).copy_(momentum[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
