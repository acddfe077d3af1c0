"""Whether a run still computes with numbers, asked without waiting for every step."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

CHECK_STEPS = 100  # at most, between two looks: a look waits until the device has caught up


class LossRecord:
    """The losses of the last steps; they stay on the device until they are read.

    No step waits for its loss: `read` does so for all of them together, when `due` says so, a
    report is wanted or a checkpoint is taken. Each is then looked at, so the step that went wrong
    is named, whenever it is found.
    """

    def __init__(self, check_steps: int = CHECK_STEPS) -> None:
        assert check_steps > 0
        self.check_steps = check_steps
        self._losses: list[Tensor] = []

    @property
    def due(self) -> bool:
        """True where `check_steps` losses wait to be read."""
        return len(self._losses) >= self.check_steps

    def add(self, loss: Tensor) -> None:
        """Takes in the mean loss of a step, a scalar on any device; does not wait for it."""
        self._losses.append(loss)

    def read(self, last_step: int) -> list[float]:
        """The losses since the last reading, in the order of their steps; forgets them.

        last_step: that of the last loss, counted from 1. FloatingPointError, naming the step,
        where one is not finite.
        """
        if not self._losses:
            return []
        losses: list[float] = torch.stack(self._losses).tolist()
        self._losses.clear()
        for step, loss in enumerate(losses, last_step + 1 - len(losses)):
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss of step {step} is {loss}")
        return losses


def require_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """FloatingPointError naming the first tensor that holds a number that is not finite.

    A last look before weights are saved: a step whose loss was finite may still have spoilt them,
    and its successor, whose loss would tell, is not made yet. Waits for the device once.
    """
    if not tensors:
        return
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    for name, good in zip(tensors, finite, strict=True):
        if not good:
            raise FloatingPointError(f"{name} after step {step} is not finite")
