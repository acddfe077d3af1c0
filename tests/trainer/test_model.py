"""Initial weights and the forward pass of the network and its variants."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.layers import random_source
from trainer.architecture import scaled
from trainer.model import AlexNet
from trainer.summary import layer_sizes
from trainer.override import override
from trainer.preset import Preset
from trainer.presets import KRIZ2012, MODERN, PAPER, PRESETS

CROP = torch.tensor([[16, 16, 0], [3, 30, 1]], dtype=torch.int32)
each = pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: str(preset.name))


def pixels(num_images: int = 2) -> Tensor:
    return torch.rand(num_images, 3, 224, 224, generator=random_source("cpu", 5)) * 255


def small(preset: Preset, seed: int = 0) -> AlexNet:
    model = AlexNet(preset, 10, 1 / 16)
    model.initialise(seed)
    return model


def test_width_rounds_to_even_numbers_and_never_to_nothing() -> None:
    assert [scaled(96, width) for width in (1, 0.25, 0.3, 0.26, 0.001)] == [96, 24, 28, 24, 2]
    for width in (0.01, 0.1, 0.33, 0.5, 1.7):
        for size in layer_sizes(PAPER, 3, width):
            assert size.name == "fc8" or size.shape[0] % 2 == 0 or size.name == "normalise"


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_a_width_that_is_no_positive_number_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="--width"):
        AlexNet(PAPER, 10, width)


@pytest.mark.parametrize("preset", [PAPER, KRIZ2012], ids=lambda preset: str(preset.name))
def test_initial_weights_are_gaussian_and_some_biases_one(preset: Preset) -> None:
    """Deviation .01, in kriz2012 .03 in conv3..conv6; biases 1 in conv2, 4, 5, 6, fc6, fc7.

    At a quarter of the width each layer but conv1 has a quarter of the inputs: deviations double.
    """
    model = AlexNet(override(preset, {"conv6": 256}), 1000, 0.25)
    model.initialise(0)
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            deep = preset is KRIZ2012 and name in {"conv3", "conv4", "conv5", "conv6"}
            std = (0.03 if deep else 0.01) * (1 if name == "conv1" else 2)
            weights = layer.weight.detach().double()
            spread = 5 / (2 * weights.numel()) ** 0.5  # five deviations of a deviation's estimate
            assert abs(weights.std().item() / std - 1) < spread
            assert abs(weights.mean().item()) < 5 * std / weights.numel() ** 0.5
            assert layer.bias is not None
            one = float(name in {"conv2", "conv4", "conv5", "conv6", "fc6", "fc7"})
            assert torch.equal(layer.bias, torch.full_like(layer.bias, one))


@pytest.mark.parametrize("preset", [PAPER, KRIZ2012], ids=lambda preset: str(preset.name))
def test_the_deviations_at_full_width_are_the_presets_own(preset: Preset) -> None:
    model = AlexNet(preset, 10)
    model.initialise(0)
    for name in ("conv1", "conv2", "conv5", "fc8"):
        deep = preset is KRIZ2012 and name == "conv5"
        weights = model.get_parameter(f"{name}.weight").detach().double()
        spread = 5 / (2 * weights.numel()) ** 0.5
        assert abs(weights.std().item() / (0.03 if deep else 0.01) - 1) < spread


@pytest.mark.parametrize("preset", [PAPER, KRIZ2012], ids=lambda preset: str(preset.name))
def test_a_narrow_network_of_2012_starts_with_as_strong_a_signal_as_a_wide_one(
    preset: Preset,
) -> None:
    """How far the logits of two images differ; with .01 everywhere the narrow one has none."""
    sizes = []
    for width in (1 / 16, 1 / 4):
        model = AlexNet(preset, 1000, width).eval()
        model.initialise(0)
        with torch.no_grad():
            logits = model(pixels() - 128, CROP, None)
        sizes.append((logits[0] - logits[1]).std().item())
    assert 1 / 3 < sizes[0] / sizes[1] < 3


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


@each
def test_initial_weights_are_a_function_of_seed_and_layer(preset: Preset) -> None:
    first, again, other = small(preset), small(preset).place(torch.device("cpu")), small(preset, 1)
    again.initialise(0)
    for name, weights in first.named_parameters():
        assert torch.equal(weights, again.get_parameter(name))
        if weights.ndim > 1:
            assert not torch.equal(weights, other.get_parameter(name))
    assert not torch.equal(first.conv4.weight.flatten()[:9], first.conv5.weight.flatten()[:9])


class ColumnsReference:
    """The network in test mode as columns that each hold their own maps, in plain operations."""

    def __init__(self, model: AlexNet) -> None:
        self.model, self.net = model, model.preset.network
        self.num = self.net.columns

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of normalised images (batch, 3, 224, 224)."""
        x = torch.cat([x, x.new_zeros(len(x), 3, 3, 224)], 2)
        x = torch.cat([x, x.new_zeros(len(x), 3, 227, 3)], 3)
        parts = self.layer("conv1", [x] * self.num, stride=4)
        if self.net.layer1_order == "conv-norm-pool-relu":
            parts = self.act(self.pool(self.norm(1, parts)))
        else:
            parts = self.pool(self.norm(1, self.act(parts)))
        tight = self.net.pool_px == 2  # 2012 layers-147.cfg: padding 1 in conv2, 0 in conv5
        if "conv2" not in self.net.removed:
            parts = self.norm(2, self.act(self.layer("conv2", parts, padding=1 if tight else 2)))
            parts = [self.map_norm(part) for part in parts]
        parts = self.pool(parts)
        for name, padding in (("conv3", 1), ("conv4", 1), ("conv5", 0 if tight else 1)):
            if name not in self.net.removed:
                met = self.met(parts) if name == "conv3" else parts
                parts = self.act(self.layer(name, met, padding=padding))
        parts = self.pool(parts)
        if self.net.conv6:
            parts = self.act(self.layer("conv6", self.met(parts), padding=1))
        parts = [part.flatten(1) for part in parts]
        for name in ("fc6", "fc7"):
            parts = [part / 2 for part in self.act(self.layer(name, self.met(parts)))]
        return F.linear(torch.cat(parts, 1), self.model.fc8.weight, self.model.fc8.bias)

    def layer(self, name: str, parts: list[Tensor], **options: int) -> list[Tensor]:
        """Each column's part of a convolution or fully-connected layer."""
        weights = self.model.get_parameter(f"{name}.weight").chunk(self.num)
        biases = self.model.get_parameter(f"{name}.bias").chunk(self.num)
        if name.startswith("fc"):
            return [F.linear(*of) for of in zip(parts, weights, biases, strict=True)]
        triples = zip(parts, weights, biases, strict=True)
        return [F.conv2d(x, weight, bias, **options) for x, weight, bias in triples]

    def met(self, parts: list[Tensor]) -> list[Tensor]:
        return [torch.cat(parts, 1)] * self.num if self.net.exchange else parts

    def act(self, parts: list[Tensor]) -> list[Tensor]:
        relu = self.net.activation == "relu"
        return [part.clamp_min(0) if relu else part.tanh() for part in parts]

    def pool(self, parts: list[Tensor]) -> list[Tensor]:
        return [F.max_pool2d(part, self.net.pool_px, 2, ceil_mode=True) for part in parts]

    def norm(self, number: int, parts: list[Tensor]) -> list[Tensor]:
        if self.net.norm == "none":
            return parts
        if self.net.norm == "response":  # torch divides alpha by the window's 5
            alpha = 1e-4 if self.net.response_alpha_divided else 5e-4
            return [F.local_response_norm(x, 5, alpha=alpha, beta=0.75, k=2.0) for x in parts]
        names = ("running_mean", "running_var", "weight", "bias")
        state = self.model.state_dict()
        own = [state[f"norm{number}.{name}"].chunk(self.num) for name in names]
        return [F.batch_norm(x, *of) for x, *of in zip(parts, *own, strict=True)]

    def map_norm(self, x: Tensor) -> Tensor:
        if self.net.norm != "response" or not self.net.map_norm_px:
            return x
        ones = x.new_ones(1, 1, 5, 5)
        sums = F.conv2d(x.square().flatten(0, 1)[:, None], ones, padding=2).view_as(x)
        return x / (1 + 0.001 / 25 * sums) ** 0.75


variants = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"columns": 1, "channels": [48, 128, 192, 192, 256]},
        {"exchange": False, "hidden": [8192, 4096]},
        {"exchange": False, "conv6": 256},
        {"conv6": 256},
        {"removed": ["conv2"]},
        {"removed": ["conv3"]},
        {"removed": ["conv4", "conv5"]},
        {"pool_px": 2},
        {"pool_px": 2, "removed": ["conv5"]},
        {"norm": "none"},
        {"activation": "tanh"},
    ],
    ids=lambda changes: " ".join(changes),
)


@each
@variants
def test_every_network_is_its_columns_put_together(preset: Preset, changes: Any) -> None:
    # weights large enough that the images weigh against the biases
    model = small(override(preset, {"init": "kaiming", **changes})).double().eval()
    source = random_source("cpu", 3)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=source) + 0.5)
    x = pixels() - 128
    found = model.place(torch.device("cpu"))(x.double(), CROP, None)
    # the layer normalises in float32
    torch.testing.assert_close(found, ColumnsReference(model)(x.double()), rtol=1e-9, atol=1e-9)
    assert (found[0] - found[1]).abs().max() > 1e-6


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


@each
@variants
def test_every_weight_of_every_network_learns(preset: Preset, changes: Any) -> None:
    model = small(override(preset, {"init": "kaiming", **changes}))
    masks = model.dropout_masks(0, 0, 2, torch.device("cpu"))
    model.train()(pixels() - 128, CROP, masks, 1.1).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_kriz2012_subtracts_the_centre_of_the_mean_and_divides_in_training() -> None:
    model = small(override(KRIZ2012, {"dropout": False}))
    mean = torch.rand(256, 256, 3, generator=random_source("cpu", 9)) * 255
    images, centre = pixels(), mean[16:240, 16:240].permute(2, 0, 1)
    plain = model.eval()(images, CROP, None)
    model.normalise.fill(mean, torch.ones(3))
    torch.testing.assert_close(model(images + centre, CROP, None), plain, rtol=1e-4, atol=1e-5)
    divided = model.train()(images * 1.1 + centre, CROP, (None, None), 1.1)
    torch.testing.assert_close(divided, plain, rtol=1e-4, atol=1e-5)


@each
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


@each
def test_channels_last_changes_no_number_much_and_no_state_name(preset: Preset) -> None:
    model = small(preset).eval()
    names, images = list(model.state_dict()), pixels()
    plain = model(images, CROP, None)
    model.place(torch.device("cpu"))
    assert model.conv3.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(model.state_dict()) == names
    placed = model(images.contiguous(memory_format=torch.channels_last), CROP, None)
    torch.testing.assert_close(placed, plain, rtol=1e-3, atol=1e-4)
