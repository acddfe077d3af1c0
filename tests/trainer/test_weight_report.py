"""The size of each layer's weights and of their last step."""

import pytest
import torch
from torch import nn

from trainer.layers import random_source
from trainer.weight_report import WeightChange, copy_weights, weight_changes, weight_table


def test_sizes_steps_and_ratios_are_those_of_the_update_rule() -> None:
    """Against the velocity of the rule itself, which is what the 2012 code printed."""
    layer = nn.Linear(7, 5).double()
    source = random_source("cpu", "weights")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 7, generator=source, dtype=torch.float64)).square().sum().backward()
        before = copy_weights(layer)
        optimizer.step()
    changes = weight_changes(copy_weights(layer), before)
    assert list(changes) == ["weight", "bias"]
    for name, parameter in layer.named_parameters():
        velocity = -0.01 * optimizer.state[parameter]["momentum_buffer"]
        size, step = parameter.abs().mean().item(), velocity.abs().mean().item()
        assert changes[name].mean_abs == pytest.approx(size, rel=1e-12)
        assert changes[name].mean_abs_step == pytest.approx(step, rel=1e-9)
        assert changes[name].ratio == pytest.approx(step / size, rel=1e-9)


def test_a_layer_of_zeros_has_the_ratio_0() -> None:
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.bias)
    changes = weight_changes(copy_weights(layer), copy_weights(layer))
    assert changes["bias"] == WeightChange(mean_abs=0.0, mean_abs_step=0.0, ratio=0.0)
    assert changes["weight"].mean_abs > 0 and changes["weight"].mean_abs_step == 0


def test_the_table_has_a_line_per_tensor() -> None:
    changes = {
        "conv1.weight": WeightChange(mean_abs=0.0123, mean_abs_step=4.56e-6, ratio=3.7e-4),
        "fc8.bias": WeightChange(mean_abs=0.0, mean_abs_step=0.0, ratio=0.0),
    }
    assert weight_table(changes, 1251).splitlines() == [
        "weights at step 1,251       |w|      |dw|     ratio",
        "    conv1.weight       1.23e-02  4.56e-06  3.70e-04",
        "    fc8.bias           0.00e+00  0.00e+00  0.00e+00",
    ]
