"""The moving average of the weights: its formula, its copy, its state."""

import pytest
import torch
from torch import Tensor

from trainer.ema import Ema
from trainer.layers import random_source
from trainer.model import AlexNet
from trainer.preset import Preset
from trainer.presets import MODERN, PAPER

both = pytest.mark.parametrize("preset", [PAPER, MODERN], ids=lambda preset: str(preset.name))
DECAY = 0.75


def network(preset: Preset) -> AlexNet:
    model = AlexNet(preset, 3, 1 / 32)
    model.initialise(0)
    mean = torch.rand(model.normalise.mean.shape, generator=random_source("cpu", "mean")) * 255
    model.normalise.fill(mean, torch.full((3,), 57.3))
    return model.place(torch.device("cpu"))


def disturb(model: AlexNet, step: int) -> None:
    """Moves weights and batch-norm statistics, as a step of training does."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.startswith("normalise."):
                source = random_source("cpu", "disturb", step, name)
                tensor.add_(torch.rand(tensor.shape, generator=source))


def copied(model: AlexNet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@both
def test_the_average_follows_its_formula(preset: Preset) -> None:
    model = network(preset)
    ema, expected = Ema(model, DECAY), {n: t.double() for n, t in copied(model).items()}
    for step in range(5):
        disturb(model, step)
        ema.update(model)
        for name, tensor in copied(model).items():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * tensor.double()
    floats = {name: t for name, t in ema.state_dict().items() if t.is_floating_point()}
    for name, tensor in floats.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7)
    moving = "norm1.running_var" if preset is MODERN else "fc7.bias"
    assert not torch.equal(floats[moving], model.state_dict()[moving])


@both
def test_the_normalisation_of_the_images_stays_what_it_is_to_the_bit(preset: Preset) -> None:
    model = network(preset)
    ema = Ema(model, 0.999)
    for _ in range(20):
        ema.update(model)
    for name in ("mean", "std") if preset is MODERN else ("mean",):
        assert torch.equal(getattr(ema.model.normalise, name), getattr(model.normalise, name))


@both
def test_the_network_in_training_is_not_touched(preset: Preset) -> None:
    model = network(preset).train()
    before = copied(model)
    ema = Ema(model, DECAY)
    disturb(ema.model, 0)
    ema.update(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    for name, tensor in before.items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    assert not torch.equal(ema.model.fc8.weight, model.fc8.weight)
    assert ema.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@both
@pytest.mark.parametrize("stop", [1, 3])
def test_continued_from_its_state_it_is_the_same_to_the_bit(preset: Preset, stop: int) -> None:
    model = network(preset)
    whole, first = Ema(model, DECAY), Ema(model, DECAY)
    for step in range(stop):
        disturb(model, step)
        whole.update(model)
        first.update(model)
    second = Ema(network(preset), DECAY)
    second.load_state_dict(first.state_dict())
    for step in range(stop, 6):
        disturb(model, step)
        whole.update(model)
        second.update(model)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("decay", [-0.1, 1.0, 99.0, float("nan")])
def test_what_is_no_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="--ema is .*, must be at least 0 and below 1"):
        Ema(network(PAPER), decay)


def test_what_counts_is_copied_not_averaged() -> None:
    model = network(MODERN)
    ema = Ema(model, 0.999)
    for name, buffer in model.named_buffers():
        if not buffer.is_floating_point():
            buffer.fill_(7)
    ema.update(model)
    assert int(ema.state_dict()["norm1.num_batches_tracked"]) == 7
