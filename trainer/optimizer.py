"""The paper's update rule on top of torch's SGD; learning-rate schedules.

torch keeps b <- m b + (g + d w), w <- w - e b. The paper (§5) keeps v <- m v - d e w - e g,
w <- w + v. With v = -e b they are the same rule while the learning rate e stands still. When it
moves, the paper keeps v, torch keeps b: multiplying b by e_old / e_new makes them equal again.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.preset import Preset


def build_optimizer(model: nn.Module, preset: Preset) -> torch.optim.SGD:
    """SGD with the preset's momentum and weight decay; its rate is set before each step.

    Two groups: matrices and kernels; vectors (biases and the parameters of batch norm), whose
    decay is 0 where the preset says so.
    """
    training = preset.training
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": vectors, "weight_decay": training.weight_decay * training.decay_vectors},
    ]
    return torch.optim.SGD(
        groups, lr=training.learning_rate, momentum=training.momentum, nesterov=training.nesterov
    )


def set_learning_rate(optimizer: torch.optim.SGD, rate: float, *, rescale_momentum: bool) -> None:
    """Sets the rate of every group; with `rescale_momentum` the paper's velocity v survives it.

    A group that goes to 0, or comes from 0, keeps its buffer: v cannot be told from b there.
    """
    for group in optimizer.param_groups:
        old = group["lr"]
        group["lr"] = rate
        if not rescale_momentum or rate == old or rate == 0 or old == 0:
            continue
        for parameter in group["params"]:
            buffer = optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                buffer.mul_(old / rate)


def momentum_state(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """The momentum buffers by parameter name; empty before the first step."""
    buffers = {
        name: optimizer.state[parameter].get("momentum_buffer")
        for name, parameter in model.named_parameters()
    }
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def load_momentum(
    model: nn.Module, optimizer: torch.optim.SGD, momentum: dict[str, Tensor], rate: float
) -> None:
    """The inverse of `momentum_state`; `rate` is the learning rate that the buffers belong to."""
    for name, parameter in model.named_parameters():
        if name in momentum:
            buffer = torch.empty_like(parameter).copy_(momentum[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer
    for group in optimizer.param_groups:
        group["lr"] = rate


class Schedule(Protocol):
    """Says the learning rate of every step; may listen to the validation error."""

    def rate(self, step: int) -> float:
        """The learning rate of global step `step`, counted from 0."""

    def observe(self, top1_error: float) -> None:
        """Takes in the validation error at the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What it learned from the errors, JSON-able."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up from peak / warmup_steps to the peak, then half a cosine down to 0.

    A pure function of the step; the validation error changes nothing.
    """

    peak: float
    warmup_steps: int
    num_steps: int

    def __post_init__(self) -> None:
        assert 0 <= self.warmup_steps < self.num_steps or self.num_steps == 1

    def rate(self, step: int) -> float:
        """See Schedule. The last step's rate is near 0 and not 0: that step would do nothing."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.num_steps - self.warmup_steps)
        return self.peak * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def observe(self, top1_error: float) -> None:
        """See Schedule."""

    def state_dict(self) -> dict[str, Any]:
        """See Schedule."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Schedule."""


class Plateau:
    """Divides the rate by `factor` when the validation error stops improving, `num_drops` times.

    "Stops": `patience` validations in a row none of which is below the best so far.
    """

    def __init__(self, *, start: float, factor: float, num_drops: int, patience: int) -> None:
        self.start, self.factor, self.num_drops, self.patience = start, factor, num_drops, patience
        self._drops = 0
        self._best = math.inf
        self._waited = 0

    def rate(self, step: int) -> float:
        """See Schedule."""
        return self.start / self.factor**self._drops

    def observe(self, top1_error: float) -> None:
        """See Schedule."""
        if top1_error < self._best:
            self._best, self._waited = top1_error, 0
            return
        self._waited += 1
        if self._waited >= self.patience and self._drops < self.num_drops:
            self._drops += 1
            self._waited = 0

    def state_dict(self) -> dict[str, Any]:
        """See Schedule."""
        best = None if self._best == math.inf else self._best  # JSON has no infinity
        return {"drops": self._drops, "best": best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Schedule."""
        self._drops, self._waited = state["drops"], state["waited"]
        self._best = math.inf if state["best"] is None else state["best"]


def build_schedule(preset: Preset, steps_per_epoch: int) -> Schedule:
    """The preset's schedule over its number of epochs.

    Warm-up is shortened to a quarter of the run where the preset's would take more.
    """
    assert steps_per_epoch > 0
    if preset.training.schedule == "plateau":
        return Plateau(
            start=preset.training.learning_rate,
            factor=preset.training.drop_factor,
            num_drops=preset.training.num_drops,
            patience=preset.training.patience_epochs,
        )
    warmup_epochs = min(preset.training.warmup_epochs, preset.training.epochs / 4)
    return Cosine(
        peak=preset.training.learning_rate,
        warmup_steps=int(warmup_epochs * steps_per_epoch),
        num_steps=preset.training.epochs * steps_per_epoch,
    )
