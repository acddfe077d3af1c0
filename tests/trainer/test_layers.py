"""The layers against loops in float64, and the rule of the random numbers."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.layers import (
    GroupedLinear,
    MapResponseNorm,
    Normalise,
    ResponseNorm,
    dropout_mask,
    mask_and_halve,
    mean_at_crop,
    random_source,
)
from trainer.preset import Mean

CPU = torch.device("cpu")


def random_tensor(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=random_source("cpu", 7)) * scale


def response_norm_by_loop(x: Tensor, size: int, k: float, alpha: float, beta: float) -> Tensor:
    """Paper §3.3 term by term, for two columns."""
    out = torch.empty_like(x)
    half = x.shape[1] // 2
    for start in (0, half):
        for i in range(half):
            first, last = max(0, i - size // 2), min(half - 1, i + size // 2)
            total = sum((x[:, start + j] ** 2 for j in range(first, last + 1)), torch.zeros(()))
            out[:, start + i] = x[:, start + i] / (k + alpha * total) ** beta
    return out


@pytest.mark.parametrize("num_channels", [4, 12, 96])
@pytest.mark.parametrize("size", [3, 5])
def test_response_norm_is_the_papers_formula_in_each_column(num_channels: int, size: int) -> None:
    x = random_tensor(2, num_channels, 3, 5, scale=100)
    layer = ResponseNorm(size=size, k=2.0, alpha=1e-4, beta=0.75, columns=2)
    expected = response_norm_by_loop(x, size, 2.0, 1e-4, 0.75)
    torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=0)
    channels_last = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, expected, rtol=1e-13, atol=0)


def map_response_norm_by_loop(x: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """The 2012 rnorm term by term: a window in one map, cut off at its border, on top of 1."""
    out, side = torch.empty_like(x), x.shape[2:]
    for row in range(side[0]):
        for column in range(side[1]):
            rows = slice(max(0, row - size // 2), row + size // 2 + 1)
            columns = slice(max(0, column - size // 2), column + size // 2 + 1)
            total = (x[:, :, rows, columns] ** 2).sum((2, 3))
            out[:, :, row, column] = x[:, :, row, column] / (1 + alpha * total) ** beta
    return out


@pytest.mark.parametrize("size", [3, 5])
def test_map_response_norm_is_the_formula_of_2012(size: int) -> None:
    x = random_tensor(2, 6, 7, 4, scale=100)
    layer = MapResponseNorm(size=size, k=1.0, alpha=0.001 / 25, beta=0.75)
    expected = map_response_norm_by_loop(x, size, 0.001 / 25, 0.75)
    torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=0)
    channels_last = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, expected, rtol=1e-13, atol=0)


def test_response_norm_does_not_divide_alpha_as_torch_does() -> None:
    x = random_tensor(2, 10, 3, 3, scale=100)
    layer = ResponseNorm(size=5, k=2.0, alpha=1e-4, beta=0.75, columns=1)
    torch_form = F.local_response_norm(x, 5, alpha=5 * 1e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(layer(x), torch_form, rtol=1e-12, atol=0)


CROSS = ResponseNorm(size=5, k=2.0, alpha=1e-4, beta=0.75, columns=2)
SAME = MapResponseNorm(size=5, k=1.0, alpha=0.001 / 25, beta=0.75)
norms = pytest.mark.parametrize("layer", [CROSS, SAME], ids=["cross-map", "same-map"])


@pytest.mark.parametrize(
    "layer",
    [
        ResponseNorm(size=5, k=2.0, alpha=0.1, beta=0.75, columns=2),
        ResponseNorm(size=3, k=1.0, alpha=0.2, beta=0.5, columns=1),
        MapResponseNorm(size=3, k=1.0, alpha=0.1, beta=0.75),
    ],
    ids=["two-columns", "one-column", "same-map"],
)
def test_gradient_of_response_norms_is_that_of_finite_differences(layer: nn.Module) -> None:
    x = random_tensor(2, 12, 4, 3, scale=3).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)


@norms
def test_response_norm_of_bf16_is_the_float32_result_rounded_once(layer: nn.Module) -> None:
    x = random_tensor(2, 8, 6, 4, scale=100).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.sum().backward()
    wide = x.detach().float().requires_grad_()
    layer(wide).sum().backward()
    assert torch.equal(out, layer(wide).to(torch.bfloat16))
    assert x.grad is not None and wide.grad is not None
    assert torch.equal(x.grad, wide.grad.to(torch.bfloat16))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@norms
def test_response_norms_compile_as_one_graph(layer: nn.Module, backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler, here is no g++")
    x = random_tensor(2, 8, 6, 4, scale=100).float().requires_grad_()
    weight = random_tensor(2, 8, 6, 4).float()
    results = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        out = call(x)
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), x)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_grouped_linear_is_a_layer_of_its_own_for_each_part(groups: int) -> None:
    layer, x = GroupedLinear(12, 6, groups).double(), random_tensor(5, 12)
    weights, biases = layer.weight.chunk(groups), layer.bias.chunk(groups)
    parts = [
        part @ weight.T + bias
        for part, weight, bias in zip(x.chunk(groups, 1), weights, biases, strict=True)
    ]
    torch.testing.assert_close(layer(x), torch.cat(parts, 1), rtol=1e-14, atol=1e-14)


def test_grouped_linear_can_be_exported_for_batches_of_any_size() -> None:
    """ONNX files take any number of images."""
    layer, batch = GroupedLinear(12, 6, 2).double(), torch.export.Dim("batch")
    program = torch.export.export(
        layer, (random_tensor(5, 12),), dynamic_shapes=({0: batch},)
    ).module()
    for num_images in (2, 7):
        x = random_tensor(num_images, 12)
        torch.testing.assert_close(program(x), layer(x), rtol=0, atol=0)


def test_mean_at_crop_is_the_crop_of_the_mean_image_mirrored_with_it() -> None:
    mean = np.random.default_rng(0).random((256, 256, 3), np.float32)
    crops = [(0, 0, 0), (32, 5, 0), (7, 32, 1), (32, 32, 1)]
    found = mean_at_crop(torch.from_numpy(mean), torch.tensor(crops, dtype=torch.int32))
    for (x, y, flip), part in zip(crops, found, strict=True):
        expected = mean[y : y + 224, x : x + 224]
        expected = expected[:, ::-1] if flip else expected
        np.testing.assert_array_equal(part.permute(1, 2, 0).numpy(), expected)


def test_the_image_mean_is_subtracted_in_float32_from_half_precision_pixels() -> None:
    layer = Normalise(mean="image-at-crop")
    mean = torch.full((256, 256, 3), 100.03125 + 2**-10)
    layer.fill(mean, torch.ones(3))
    images = torch.full((1, 3, 224, 224), 100.0, dtype=torch.float16)
    out = layer(images, torch.tensor([[16, 16, 0]]))
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.full_like(out, -(0.03125 + 2**-10)))


def test_the_channel_mean_goes_with_a_division_by_the_deviation() -> None:
    layer = Normalise(mean="channel")
    layer.fill(torch.tensor([10.0, 20.0, 30.0]), torch.tensor([2.0, 4.0, 8.0]))
    out = layer(torch.full((1, 3, 224, 224), 50.0), torch.zeros(1, 3))
    assert out[0, :, 0, 0].tolist() == [20.0, 7.5, 2.5]


@pytest.mark.parametrize("flip", [0, 1])
def test_the_mean_at_the_centre_is_the_same_for_every_crop(flip: int) -> None:
    mean = torch.rand(256, 256, 3, generator=random_source("cpu", 1))
    layer = Normalise(mean="image-centre")
    layer.fill(mean, torch.full((3,), 9.0))
    out = layer(torch.zeros(2, 3, 224, 224), torch.tensor([[0, 5, flip], [32, 1, flip]]))
    for image in out:
        assert torch.equal(-image, mean[16:240, 16:240].permute(2, 0, 1))


@pytest.mark.parametrize("kind", ["image-at-crop", "image-centre", "channel"])
def test_the_divisor_divides_what_is_left_after_the_mean(kind: Mean) -> None:
    layer = Normalise(mean=kind)
    mean = torch.rand(layer.mean.shape, generator=random_source("cpu", 2)) * 200
    layer.fill(mean, torch.tensor([2.0, 4.0, 8.0]))
    images = torch.rand(2, 3, 224, 224, generator=random_source("cpu", 3)) * 255
    crop = torch.tensor([[16, 16, 0], [1, 30, 1]])
    torch.testing.assert_close(layer(images, crop, 1.1), layer(images, crop) / 1.1)
    assert not torch.equal(layer(images, crop, 1.1), layer(images, crop))
    assert torch.equal(layer(images, crop, 1.0), layer(images, crop))


def test_flat_images_give_no_infinity() -> None:
    layer = Normalise(mean="channel")
    layer.fill(torch.zeros(3), torch.zeros(3))
    assert layer(torch.full((1, 3, 224, 224), 9.0), torch.zeros(1, 3)).max() == 9.0


def test_random_source_is_a_function_of_its_key_alone() -> None:
    torch.manual_seed(1)
    first = torch.rand(4, generator=random_source("cpu", 0, "weights", "conv1"))
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(4, generator=random_source("cpu", 0, "weights", "conv1")))
    for key in ((1, "weights", "conv1"), (0, "weights", "conv2"), (0, "dropout", "conv1")):
        assert not torch.equal(first, torch.rand(4, generator=random_source("cpu", *key)))


def test_dropout_masks_half_differently_in_each_step_and_layer() -> None:
    mask = dropout_mask(3, 10, "fc6", (64, 512), CPU)
    assert set(mask.flatten().tolist()) == {0.0, 1.0}
    assert abs(mask.mean().item() - 0.5) < 0.01  # deviation of the mean is .0028
    assert torch.equal(mask, dropout_mask(3, 10, "fc6", (64, 512), CPU))
    for other in ((3, 11, "fc6"), (3, 10, "fc7"), (4, 10, "fc6")):
        agreement = (mask == dropout_mask(*other, (64, 512), CPU)).float().mean().item()
        assert abs(agreement - 0.5) < 0.02


def test_dropout_masks_in_training_and_halves_in_test() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert mask_and_halve(x, torch.tensor([[1.0, 0.0, 1.0]])).tolist() == [[1.0, 0.0, 3.0]]
    assert mask_and_halve(x, None).tolist() == [[0.5, 1.0, 1.5]]
