"""Whether a run still computes with numbers, asked without waiting for every step."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.collectives import Group
from trainer.parallel import ALONE, Layout

CHECK_STEPS = 100  # at most, between two looks: a look waits until the device has caught up


class LossNotFinite(FloatingPointError):
    """The loss of a step, counted from 1, is no number or without bound."""

    def __init__(self, step: int, loss: float, where: str = "") -> None:
        super().__init__(f"the loss of step {step} is {loss}{where}")
        self.step = step


class LossRecord:
    """The losses of the last steps; they stay on the device until they are read.

    No step waits for its loss: `read` does so for all of them together, when `due` says so, a
    report is wanted or a checkpoint is taken. Each is then looked at, so the step that went wrong
    is named, whenever it is found. layout: of ranks that each have a share of the loss.
    """

    def __init__(self, check_steps: int = CHECK_STEPS, layout: Layout = ALONE) -> None:
        assert check_steps > 0
        self.check_steps, self._layout = check_steps, layout
        self._losses: list[Tensor] = []

    @property
    def due(self) -> bool:
        """True where `check_steps` losses wait to be read."""
        return len(self._losses) >= self.check_steps

    def add(self, loss: Tensor) -> None:
        """Takes in this rank's share of a step's loss, a scalar on any device, without waiting."""
        self._losses.append(loss)

    def read(self, last_step: int) -> list[float]:
        """The losses since the last reading, in the order of their steps; forgets them.

        last_step: that of the last loss, counted from 1. LossNotFinite, naming the step and the
        ranks, where one is not finite. Every rank calls it at the same step.
        """
        if not self._losses:
            return []
        shares = torch.stack(self._losses)
        losses: list[float] = self._layout.unit_copies.total(shares).tolist()
        self._losses.clear()
        for place, loss in enumerate(losses):
            if not math.isfinite(loss):
                step = last_step + 1 - len(losses) + place
                where = _told_ranks(shares[place], self._layout.ranks)
                raise LossNotFinite(step, loss, where)
        return losses


def _told_ranks(share: Tensor, ranks: Group) -> str:
    """Which ranks have a share of the loss that is not finite, in words; "" for all of them."""
    finite = ranks.all_gather(share.isfinite().int()[None], 0).tolist()
    spoilt = [str(rank) for rank, good in enumerate(finite) if not good]
    return f" on rank {', '.join(spoilt)}" if 0 < len(spoilt) < ranks.size else ""


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
