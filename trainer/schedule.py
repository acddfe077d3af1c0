"""Learning-rate schedules: the rate of every step, from the step or from the validation error."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from trainer.preset import Preset


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


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Divides the rate by `factor` at fixed epochs, counted as epochs finished before."""

    start: float
    factor: float
    drop_epochs: tuple[int, ...]
    steps_per_epoch: int

    def rate(self, step: int) -> float:
        """See Schedule."""
        epoch = step // self.steps_per_epoch
        return self.start / self.factor ** sum(epoch >= drop for drop in self.drop_epochs)

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
    training = preset.training
    if training.schedule == "plateau":
        return Plateau(
            start=training.learning_rate,
            factor=training.drop_factor,
            num_drops=training.num_drops,
            patience=training.patience_epochs,
        )
    if training.schedule == "steps":
        return Steps(
            start=training.learning_rate,
            factor=training.drop_factor,
            drop_epochs=training.drop_epochs,
            steps_per_epoch=steps_per_epoch,
        )
    warmup_epochs = min(training.warmup_epochs, training.epochs / 4)
    return Cosine(
        peak=training.learning_rate,
        warmup_steps=int(warmup_epochs * steps_per_epoch),
        num_steps=training.epochs * steps_per_epoch,
    )
