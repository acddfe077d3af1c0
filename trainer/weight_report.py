"""How large each layer's weights are and how far a step moves them, as the 2012 code printed it.

cuda-convnet printed, at each test, the mean absolute value of every layer's weights and of their
last increments; cuda-convnet2 also their ratio. A ratio near 1e-3 is a healthy one; 0 is a dead
layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """One weight tensor around one step."""

    mean_abs: float  # |w|, after the step
    mean_abs_step: float  # |dw|
    ratio: float  # |dw| / |w|; 0 where |w| is 0


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, copied where they are, for `weight_changes`."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def weight_changes(
    after: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> dict[str, WeightChange]:
    """What a step did to each parameter, by name, from the parameters after and before it.

    The increment is measured, not taken from the momentum: it holds for every update rule, and is
    what float32 really adds to a weight. Waits for the device once.
    """
    parts = [
        torch.stack([parameter.abs().mean(), (parameter - before[name]).abs().mean()])
        for name, parameter in after.items()
    ]
    means: list[list[float]] = torch.stack(parts).tolist()
    return {
        name: WeightChange(mean_abs=size, mean_abs_step=step, ratio=step / size if size else 0.0)
        for name, (size, step) in zip(after, means, strict=True)
    }


def weight_table(changes: Mapping[str, WeightChange], step: int) -> str:
    """The changes for a person, one line per tensor."""
    heading = f"weights at step {step:,}"
    wide = max(len(heading), *(len(name) + 4 for name in changes))
    lines = [f"{heading:<{wide}} {'|w|':>9} {'|dw|':>9} {'ratio':>9}"]
    lines += [
        f"{f'    {name}':<{wide}} {change.mean_abs:9.2e} {change.mean_abs_step:9.2e} "
        f"{change.ratio:9.2e}"
        for name, change in changes.items()
    ]
    return "\n".join(lines)
