"""Sizes, initial weights and the forward pass of the network."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.layers import random_source
from trainer.model import AlexNet, scaled
from trainer.summary import layer_sizes, summary
from trainer.override import override
from trainer.presets import MODERN, PAPER, Preset

CROP = torch.tensor([[16, 16, 0], [3, 30, 1]], dtype=torch.int32)
both = pytest.mark.parametrize("preset", [PAPER, MODERN], ids=lambda preset: str(preset.name))


def pixels(num_images: int = 2) -> Tensor:
    return torch.rand(num_images, 3, 224, 224, generator=random_source("cpu", 5)) * 255


def small(preset: Preset, seed: int = 0) -> AlexNet:
    model = AlexNet(preset, 10, 1 / 16)
    model.initialise(seed)
    return model


def test_the_papers_network_has_its_parameters_and_multiply_adds() -> None:
    """The counts of the grouped network with 1,000 classes: 60.97 M and 724.4 M."""
    with torch.device("meta"):
        model = AlexNet(PAPER, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == 60_965_224
    sizes = layer_sizes(PAPER, 1000)
    assert sum(size.num_parameters for size in sizes) == 60_965_224
    assert sum(size.num_multiply_adds for size in sizes) == 724_406_816
    assert "60,965,224    724,406,816" in summary(PAPER, 1000)


def test_the_maps_have_the_papers_sizes() -> None:
    shapes = {size.name: size.shape for size in layer_sizes(PAPER, 1000)}
    assert [shapes[f"conv{i}"] for i in range(1, 6)] == [
        (96, 55, 55),
        (256, 27, 27),
        (384, 13, 13),
        (384, 13, 13),
        (256, 13, 13),
    ]
    assert shapes["fc6"] == (4096,) and shapes["fc8"] == (1000,)


def test_width_rounds_to_even_numbers_and_never_to_nothing() -> None:
    assert [scaled(96, width) for width in (1, 0.25, 0.3, 0.26, 0.001)] == [96, 24, 28, 24, 2]
    for width in (0.01, 0.1, 0.33, 0.5, 1.7):
        for size in layer_sizes(PAPER, 3, width):
            assert size.name == "fc8" or size.shape[0] % 2 == 0 or size.name == "normalise"


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_a_width_that_is_no_positive_number_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="--width"):
        AlexNet(PAPER, 10, width)


def test_initial_weights_of_the_paper() -> None:
    """Gaussian, deviation .01; biases one in conv2, conv4, conv5, fc6, fc7, else zero (§5)."""
    model = AlexNet(PAPER, 1000, 0.25)
    model.initialise(0)
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weights = layer.weight.detach().double()
            spread = 5 / (2 * weights.numel()) ** 0.5  # five deviations of a deviation's estimate
            assert abs(weights.std().item() / 0.01 - 1) < spread
            assert abs(weights.mean().item()) < 5 * 0.01 / weights.numel() ** 0.5
            assert layer.bias is not None
            one = float(name in {"conv2", "conv4", "conv5", "fc6", "fc7"})
            assert torch.equal(layer.bias, torch.full_like(layer.bias, one))


def test_initial_weights_of_modern_keep_the_signals_size() -> None:
    """Kaiming: variance 2 / fan-in; biases zero."""
    model = AlexNet(MODERN, 1000, 0.25)
    model.initialise(0)
    for layer in model.children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            spread = 5 / (2 * layer.weight.numel()) ** 0.5
            assert abs(layer.weight.std().item() / (2 / fan_in) ** 0.5 - 1) < spread
            assert layer.bias is not None and not layer.bias.any()


@both
def test_initial_weights_are_a_function_of_seed_and_layer(preset: Preset) -> None:
    first, again, other = small(preset), small(preset).place(torch.device("cpu")), small(preset, 1)
    again.initialise(0)
    for name, weights in first.named_parameters():
        assert torch.equal(weights, again.get_parameter(name))
        if weights.ndim > 1:
            assert not torch.equal(weights, other.get_parameter(name))
    assert not torch.equal(first.conv4.weight.flatten()[:9], first.conv5.weight.flatten()[:9])


def columns_reference(model: AlexNet, x: Tensor, crop: Tensor) -> Tensor:
    """The paper's network in test mode as two columns that meet in conv3 and fc6, in float64."""

    def weights(layer: nn.Conv2d, column: int) -> tuple[Tensor, Tensor]:
        assert layer.bias is not None
        return layer.weight.chunk(2)[column], layer.bias.chunk(2)[column]

    def norm(part: Tensor) -> Tensor:
        return F.local_response_norm(part, 5, alpha=5e-4, beta=0.75, k=2.0)

    x = torch.cat([x, x.new_zeros(len(x), 3, 3, 224)], 2)
    x = torch.cat([x, x.new_zeros(len(x), 3, 227, 3)], 3)
    both: list[Tensor] = []
    for column in range(2):
        part = norm(F.conv2d(x, *weights(model.conv1, column), stride=4).relu())
        part = F.max_pool2d(part, 3, 2)
        part = norm(F.conv2d(part, *weights(model.conv2, column), padding=2).relu())
        both.append(F.max_pool2d(part, 3, 2))
    whole, both = torch.cat(both, 1), []
    for column in range(2):
        part = F.conv2d(whole, *weights(model.conv3, column), padding=1).relu()
        part = F.conv2d(part, *weights(model.conv4, column), padding=1).relu()
        part = F.conv2d(part, *weights(model.conv5, column), padding=1).relu()
        both.append(F.max_pool2d(part, 3, 2))
    features = torch.cat(both, 1).flatten(1)
    for layer in (model.fc6, model.fc7):
        features = F.linear(features, layer.weight, layer.bias).relu() / 2
    return F.linear(features, model.fc8.weight, model.fc8.bias)


def test_the_papers_network_is_two_columns_that_meet_in_conv3_and_fc6() -> None:
    model = small(PAPER).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that the images weigh against the biases
    x = (pixels() - 128).double()
    found = model.place(torch.device("cpu"))(x, CROP, None)
    # the layer normalises in float32
    expected = columns_reference(model, x.float().double(), CROP)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_paper_subtracts_the_mean_at_the_crop() -> None:
    model = small(PAPER).eval()
    mean = torch.rand(256, 256, 3, generator=random_source("cpu", 9)) * 255
    images = pixels()
    plain = model(images, CROP, None)
    model.normalise.fill(mean, torch.ones(3))
    shifted = torch.stack(
        [
            images[0] + mean[16:240, 16:240].permute(2, 0, 1),
            images[1] + mean[30:254, 3:227].permute(2, 0, 1).flip(2),
        ]
    )
    torch.testing.assert_close(model(shifted, CROP, None), plain, rtol=1e-4, atol=1e-5)


@both
def test_dropout_masks_act_in_training_and_halving_in_test(preset: Preset) -> None:
    """Half of all features gives, before fc7's and fc8's own input, what a mask of 1/2 gives."""
    preset = override(preset, {"norm": "response"})  # batch norm differs in test by itself
    model = small(preset)
    half = torch.full((2, model.fc6.out_features), 0.5)
    images = pixels()
    trained = model.train()(images, CROP, (half, half))
    torch.testing.assert_close(trained, model.eval()(images, CROP, None), rtol=0, atol=0)
    masks = model.dropout_masks(0, 0, 2, images.device)
    assert not torch.equal(model.train()(images, CROP, masks), trained)


def test_without_dropout_training_and_test_agree() -> None:
    model = small(override(PAPER, {"dropout": False}))
    masks = model.dropout_masks(0, 0, 2, torch.device("cpu"))
    assert masks == (None, None)
    images = pixels()
    trained = model.train()(images, CROP, masks)
    torch.testing.assert_close(trained, model.eval()(images, CROP, None), rtol=0, atol=0)


@both
def test_channels_last_changes_no_number_much_and_no_state_name(preset: Preset) -> None:
    model = small(preset).eval()
    names, images = list(model.state_dict()), pixels()
    plain = model(images, CROP, None)
    model.place(torch.device("cpu"))
    assert model.conv3.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(model.state_dict()) == names
    placed = model(images.contiguous(memory_format=torch.channels_last), CROP, None)
    torch.testing.assert_close(placed, plain, rtol=1e-3, atol=1e-4)
