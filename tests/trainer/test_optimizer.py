"""The update rule against the paper's formula, over drops, in every group of parameters."""

import pytest
import torch
from torch import Tensor, nn

from trainer.layers import random_source
from trainer.optimizer import (
    build_optimizer,
    layer_factor,
    learning_rates,
    load_momentum,
    momentum_state,
    set_learning_rates,
)
from trainer.override import override
from trainer.preset import LayerRate, Preset
from trainer.presets import KRIZ2012, MODERN, PAPER

RATES = [0.01] * 4 + [0.001] * 4 + [0.0001] * 3  # of the schedule, one step an epoch
SMALL = override(KRIZ2012, {"layer_rates": [[6, "conv1", 0.1], [9, "conv1", 0.0]]})
three = pytest.mark.parametrize("preset", [PAPER, SMALL], ids=lambda preset: str(preset.name))


def network() -> nn.Sequential:
    """Two layers, of which the first has the name that SMALL singles out."""
    model = nn.Sequential()
    model.add_module("conv1", nn.Linear(5, 3))
    model.add_module("fc6", nn.Linear(4, 2))
    source = random_source("cpu", 1)
    for parameter in model.double().parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=source)
    return model


def gradients(model: nn.Module, step: int) -> dict[str, Tensor]:
    source = random_source("cpu", 2, step)
    return {
        name: torch.randn(p.shape, dtype=p.dtype, generator=source)
        for name, p in model.named_parameters()
    }


def step_by_hand(preset: Preset, name: str, step: int) -> tuple[float, float]:
    """Rate and decay of a parameter in a step, as FACTS tells the two presets."""
    rate, bias = RATES[step], name.endswith("bias")
    if preset.name == "paper":
        return rate, 0.0005
    if name.startswith("conv1"):
        rate *= 0.0 if step >= 9 else 0.1 if step >= 6 else 1.0
    return (2 * rate, 0.0) if bias else (rate, 0.0005)


def papers_weights(model: nn.Module, preset: Preset) -> dict[str, Tensor]:
    """Paper §5: v <- 0.9 v - 0.0005 e w - e g, w <- w + v; nothing moves where e is 0."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(len(RATES)):
        for name, gradient in gradients(model, step).items():
            rate, decay = step_by_hand(preset, name, step)
            if rate:
                velocity[name] = (
                    0.9 * velocity[name] - decay * rate * weights[name] - rate * gradient
                )
                weights[name] = weights[name] + velocity[name]
    return weights


def take_step(model: nn.Module, optimizer: torch.optim.SGD, preset: Preset, step: int) -> None:
    set_learning_rates(optimizer, RATES[step], step, preset.training)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = gradients(model, step)[name]
    optimizer.step()


def torch_weights(preset: Preset) -> dict[str, Tensor]:
    model = network()
    optimizer = build_optimizer(model, preset)
    for step in range(len(RATES)):
        take_step(model, optimizer, preset, step)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max((found[name] - expected[name]).abs().max().item() for name in expected)


@three
def test_the_update_rule_is_the_papers_over_drops_in_every_group(preset: Preset) -> None:
    assert distance(torch_weights(preset), papers_weights(network(), preset)) < 1e-15


@three
def test_torchs_own_rule_differs_after_a_drop(preset: Preset) -> None:
    """The reason for rescaling: without it the test above would fail by far."""
    plain = override(preset, {"rescale_momentum": False})
    assert distance(torch_weights(plain), papers_weights(network(), preset)) > 1e-3


def test_the_reference_tells_the_two_presets_apart() -> None:
    paper, kriz = (papers_weights(network(), preset) for preset in (PAPER, SMALL))
    assert all(not torch.equal(paper[name], kriz[name]) for name in ("conv1.weight", "fc6.bias"))
    assert torch.equal(paper["fc6.weight"], kriz["fc6.weight"])


def test_a_frozen_layer_has_no_gradient_and_keeps_its_velocity_and_its_weights() -> None:
    model = network()
    optimizer = build_optimizer(model, SMALL)
    for step in range(9):
        take_step(model, optimizer, SMALL, step)
    weight = model.get_parameter("conv1.weight")
    velocity, before = momentum_state(model, optimizer)["conv1.weight"].clone(), weight.clone()
    take_step(model, optimizer, SMALL, 9)
    assert weight.grad is None and torch.equal(weight, before)
    assert torch.equal(momentum_state(model, optimizer)["conv1.weight"], velocity)
    learns = [weight.requires_grad]
    set_learning_rates(optimizer, 0.01, 0, SMALL.training)  # should its rate ever come back
    assert [*learns, weight.requires_grad] == [False, True]
    assert torch.equal(momentum_state(model, optimizer)["conv1.weight"], velocity)


def test_the_last_entry_of_a_layer_says_its_rate() -> None:
    rates = (LayerRate(0, "conv1", 0.1), LayerRate(0, "fc8", 10.0), LayerRate(5, "conv1", 0.0))
    assert [layer_factor(rates, "conv1", epoch) for epoch in (0, 4, 5, 9)] == [0.1, 0.1, 0, 0]
    assert [layer_factor(rates, layer, 9) for layer in ("fc8", "fc7", "")] == [10.0, 1.0, 1.0]


def test_rates_that_freeze_every_layer_are_refused() -> None:
    rates = [[0, "conv1", 0.0], [3, "fc6", 0.0], [3, "conv2", 0.5]]  # there is no conv2
    with pytest.raises(ValueError, match="layer_rates freeze every layer from epoch 3 on"):
        build_optimizer(network(), override(PAPER, {"layer_rates": rates}))
    build_optimizer(network(), override(PAPER, {"layer_rates": [*rates, [3, "conv1", 0.1]]}))
    build_optimizer(network(), override(PAPER, {"layer_rates": rates[:1]}))


def test_groups_are_few_and_each_parameter_is_in_one() -> None:
    model = network()
    assert [g["name"] for g in build_optimizer(model, PAPER).param_groups] == [
        "matrices", "vectors",
    ]  # fmt: skip
    groups = build_optimizer(model, SMALL).param_groups
    assert [g["name"] for g in groups] == [
        "conv1.matrices", "conv1.vectors", "matrices", "vectors",
    ]  # fmt: skip
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(map(id, model.parameters()))


def test_modern_decays_neither_biases_nor_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decays = {
        id(parameter): group["weight_decay"]
        for group in build_optimizer(model, MODERN).param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decays.pop(id(parameter)) == (5e-4 if name in ("0.weight", "2.weight") else 0.0)
    assert not decays
    assert {g["weight_decay"] for g in build_optimizer(model, PAPER).param_groups} == {5e-4}


@three
@pytest.mark.parametrize("stop", [4, 5, 6, 9, 10])
def test_momentum_survives_saving_bit_by_bit(preset: Preset, stop: int) -> None:
    """Stopped on either side of a drop or of a layer's own change, the weights come out equal."""
    model = network()
    optimizer = build_optimizer(model, preset)
    for step in range(len(RATES)):
        if step == stop:
            saved = {k: v.clone() for k, v in momentum_state(model, optimizer).items()}
            rates = learning_rates(optimizer)
            optimizer = build_optimizer(model, preset)
            load_momentum(model, optimizer, saved, rates)
        take_step(model, optimizer, preset, step)
    assert distance(dict(model.named_parameters()), torch_weights(preset)) == 0
