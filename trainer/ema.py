"""A moving average of the weights, which often errs less than the weights themselves."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.model import AlexNet


class Ema:
    """average <- DECAY * average + (1 - DECAY) * weights after every step.

    It starts at the weights it is made with, so it tells little before about 1 / (1 - DECAY)
    steps. The statistics of batch norm are averaged with the weights they belong to. `model` is
    the network with the averaged weights, in test mode, on the device of the original. ValueError
    for a decay that is none.
    """

    def __init__(self, model: AlexNet, decay: float) -> None:
        require_decay(decay)
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        # torch's AveragedModel around this rule would wait for a GPU at every step (torch 2.13).
        self._move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch's

    @torch.no_grad()
    def update(self, model: AlexNet) -> None:
        """Takes in the weights after a step; does not wait for the device."""
        averages, values = self.model.state_dict(), model.state_dict()
        moving = [name for name, average in averages.items() if average.is_floating_point()]
        self._move([averages[name] for name in moving], [values[name] for name in moving], 0)
        for name in averages.keys() - moving:  # batch norm counts its batches
            averages[name].copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged parameters and buffers, by the names they have in the network."""
        return self.model.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(tensors)


def require_decay(decay: float) -> None:
    """ValueError unless `decay` is the factor of a moving average: at least 0 and below 1."""
    if not 0 <= decay < 1:
        raise ValueError(f"--ema is {decay}, must be at least 0 and below 1, such as 0.999")
