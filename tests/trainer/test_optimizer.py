"""The update rule against the paper's formula, and the decisions of the schedules."""

import math

import pytest
import torch
from torch import Tensor, nn

from trainer.layers import random_source
from trainer.optimizer import (
    Cosine,
    Plateau,
    build_optimizer,
    build_schedule,
    load_momentum,
    momentum_state,
    set_learning_rate,
)
from trainer.override import override
from trainer.presets import MODERN, PAPER

RATES = [0.01] * 4 + [0.001] * 4 + [0.0001] * 3


def layer() -> nn.Linear:
    model = nn.Linear(5, 3).double()
    source = random_source("cpu", 1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=source)
    return model


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    source = random_source("cpu", 2, step)
    return [torch.randn(p.shape, dtype=p.dtype, generator=source) for p in model.parameters()]


def papers_weights(model: nn.Module) -> list[Tensor]:
    """Paper §5: v <- 0.9 v - 0.0005 e w - e g, w <- w + v, over the rates above."""
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    for step, rate in enumerate(RATES):
        for i, gradient in enumerate(gradients(model, step)):
            velocity[i] = 0.9 * velocity[i] - 0.0005 * rate * weights[i] - rate * gradient
            weights[i] = weights[i] + velocity[i]
    return weights


def torch_weights(model: nn.Module, *, rescale_momentum: bool) -> list[Tensor]:
    optimizer = build_optimizer(model, PAPER)
    for step, rate in enumerate(RATES):
        set_learning_rate(optimizer, rate, rescale_momentum=rescale_momentum)
        for parameter, gradient in zip(model.parameters(), gradients(model, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_the_update_rule_is_the_papers_over_two_drops_of_the_rate() -> None:
    expected = papers_weights(layer())
    found = torch_weights(layer(), rescale_momentum=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


def test_torchs_own_rule_differs_after_a_drop() -> None:
    """The reason for rescaling: without it the test above would fail by far."""
    expected = papers_weights(layer())
    found = torch_weights(layer(), rescale_momentum=False)
    assert max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)) > 1e-3


def test_a_rate_of_zero_is_not_divided_by() -> None:
    model = layer()
    optimizer = build_optimizer(model, PAPER)
    model.weight.grad, model.bias.grad = gradients(model, 0)
    optimizer.step()
    before = momentum_state(model, optimizer)["weight"].clone()
    for rate in (0.0, 0.01):
        set_learning_rate(optimizer, rate, rescale_momentum=True)
    assert torch.equal(momentum_state(model, optimizer)["weight"], before)


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


def test_momentum_survives_saving_bit_by_bit() -> None:
    """Stopped after five of the steps, on either side of a drop, the weights come out the same."""
    undisturbed, model = layer(), layer()
    expected = torch_weights(undisturbed, rescale_momentum=True)
    optimizer = build_optimizer(model, PAPER)
    for step, rate in enumerate(RATES):
        if step in (4, 5):
            saved = {k: v.clone() for k, v in momentum_state(model, optimizer).items()}
            old_rate = optimizer.param_groups[0]["lr"]
            optimizer = build_optimizer(model, PAPER)
            load_momentum(model, optimizer, saved, old_rate)
        set_learning_rate(optimizer, rate, rescale_momentum=True)
        for parameter, gradient in zip(model.parameters(), gradients(model, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    for ours, theirs in zip(model.parameters(), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_cosine_warms_up_linearly_and_ends_near_zero() -> None:
    schedule = Cosine(peak=0.8, warmup_steps=4, num_steps=104)
    assert [schedule.rate(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert schedule.rate(54) == pytest.approx(0.4)
    assert schedule.rate(29) == pytest.approx(0.4 * (1 + math.cos(math.pi / 4)))
    assert 0 < schedule.rate(103) < 0.001
    rates = [schedule.rate(step) for step in range(4, 104)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("epochs", "warmup_steps"), [(90, 500), (20, 500), (8, 200), (1, 25)])
def test_warm_up_takes_at_most_a_quarter_of_the_run(epochs: int, warmup_steps: int) -> None:
    schedule = build_schedule(override(MODERN, {"epochs": epochs}), 100)
    assert isinstance(schedule, Cosine)
    assert (schedule.warmup_steps, schedule.num_steps) == (warmup_steps, epochs * 100)


def test_a_run_of_a_single_step_has_a_rate() -> None:
    assert build_schedule(override(MODERN, {"epochs": 1}), 1).rate(0) == 0.08


def plateau_rates(errors: list[float], patience: int = 2) -> list[float]:
    """The rate in force after each of the errors."""
    schedule = Plateau(start=1.0, factor=10.0, num_drops=3, patience=patience)
    rates = []
    for error in errors:
        schedule.observe(error)
        rates.append(schedule.rate(0))
    return rates


def test_plateau_waits_while_the_error_falls() -> None:
    assert plateau_rates([0.9 - 0.01 * i for i in range(20)]) == [1.0] * 20


def test_plateau_drops_when_the_best_error_was_not_beaten_for_its_patience() -> None:
    errors = [0.9, 0.8, 0.85, 0.7, 0.7, 0.75, 0.72, 0.6, 0.61]
    assert plateau_rates(errors) == [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]


def test_plateau_drops_three_times_at_most() -> None:
    assert plateau_rates([0.5] * 12)[-1] == pytest.approx(1e-3)
    assert len(set(plateau_rates([0.5] * 12))) == 4


@pytest.mark.parametrize("stop", range(9))
def test_plateau_goes_on_from_its_saved_state(stop: int) -> None:
    errors = [0.9, 0.8, 0.85, 0.7, 0.7, 0.75, 0.72, 0.71, 0.71]
    first = Plateau(start=1.0, factor=10.0, num_drops=3, patience=2)
    for error in errors[:stop]:
        first.observe(error)
    second = Plateau(start=1.0, factor=10.0, num_drops=3, patience=2)
    second.load_state_dict(first.state_dict())
    rates = []
    for error in errors[stop:]:
        second.observe(error)
        rates.append(second.rate(0))
    assert rates == plateau_rates(errors)[stop:]


def test_the_paper_gets_its_plateau() -> None:
    schedule = build_schedule(PAPER, 100)
    assert isinstance(schedule, Plateau) and schedule.rate(12345) == 0.01
