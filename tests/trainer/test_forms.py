"""Every form of a convolution gives what the plain one gives, and the same gradients."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainer.forms
from trainer.forms import FORMS, Maps, apart, fastest_form, forms_of, handed_over, joined
from trainer.input import PAD_PX

LAYERS = {  # name: the layer's arguments, and the side of what it sees
    "conv1": ({"in_channels": 3, "out_channels": 8, "kernel_size": 11, "stride": 4}, 224 + PAD_PX),
    "a smaller conv1": (
        {"in_channels": 2, "out_channels": 4, "kernel_size": 11, "stride": 4}, 51
    ),
    "conv2": (
        {"in_channels": 8, "out_channels": 12, "kernel_size": 5, "padding": 2, "groups": 2}, 9
    ),
    "four groups": (
        {"in_channels": 8, "out_channels": 12, "kernel_size": 3, "padding": 1, "groups": 4}, 6
    ),
}  # fmt: skip


def layer_of(name: str) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    arguments, side = LAYERS[name]
    layer = nn.Conv2d(**arguments).double()  # type: ignore[arg-type]  # a dict of ints
    return layer, torch.randn(2, layer.in_channels, side, side, dtype=torch.float64)


def there_and_back(form: str, layer: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """What comes out, and the gradients of the kernels and, but for conv1, of the input."""
    maps = handed_over(form, layer, x, needs_gradient=layer.stride == (1, 1))
    out = joined(FORMS[form](layer, maps))
    source = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=source, dtype=out.dtype)
    inputs = [layer.weight, *(maps if layer.stride == (1, 1) else ())]
    of_weight, *of_maps = torch.autograd.grad((out * weight).sum(), inputs)
    return [out.detach(), of_weight, *([joined(tuple(of_maps))] if of_maps else [])]


@pytest.mark.parametrize("name", LAYERS)
def test_all_forms_are_equal_in_float64(name: str) -> None:
    layer, x = layer_of(name)
    expected = there_and_back("plain", layer, x)
    names = forms_of(layer)
    assert names[0] == "plain" and len(names) > 1
    for form in names[1:]:
        for found, wanted in zip(there_and_back(form, layer, x), expected, strict=True):
            assert found.shape == wanted.shape
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_kernels_of_an_odd_number_are_not_halved() -> None:
    assert forms_of(nn.Conv2d(3, 5, 11, stride=4)) == ("plain", "unshuffled")


def test_the_plain_form_is_the_layer_without_its_bias() -> None:
    layer, x = layer_of("conv2")
    (out,) = FORMS["plain"](layer, (x,))
    assert layer.bias is not None
    torch.testing.assert_close(out + layer.bias.view(-1, 1, 1), layer(x), rtol=0, atol=1e-13)


def test_maps_are_parted_and_joined_without_loss() -> None:
    x = torch.arange(48.0).view(2, 6, 2, 2)
    halves = apart((x,), 2)
    assert [half.shape[1] for half in halves] == [3, 3]
    assert torch.equal(joined(halves), x)
    assert apart(halves, 2) is halves and joined((x,)) is x
    thirds = apart(halves, 3)
    assert len(thirds) == 3 and torch.equal(joined(thirds), x)


def test_a_layer_without_groups_or_stride_has_one_form() -> None:
    assert forms_of(nn.Conv2d(4, 4, 3, padding=1)) == ("plain",)


def test_the_fastest_form_is_the_one_of_the_least_median(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only moves in forms: "dense" takes least, but for one late round."""
    now, cost = 0.0, {"plain": 3.0, "split": 2.0, "dense": 1.0}
    calls = dict.fromkeys(cost, 0)

    def made(name: str) -> Any:
        def form(layer: nn.Conv2d, maps: Maps) -> Maps:
            nonlocal now
            calls[name] += 1
            now += 100.0 if name == "dense" and calls[name] == 3 else cost[name]
            return original[name](layer, maps)

        return form

    original = dict(FORMS)
    monkeypatch.setattr(trainer.forms, "FORMS", {name: made(name) for name in cost})
    monkeypatch.setattr("trainer.forms.time.perf_counter", lambda: now)
    layer, x = layer_of("conv2")
    found, seconds = fastest_form(layer, x, nullcontext, needs_gradient=True)
    assert found == "dense" and seconds == cost
    assert set(calls.values()) == {trainer.forms.ROUNDS + 1}
    assert all(parameter.grad is None for parameter in layer.parameters())
