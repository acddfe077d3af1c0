"""What a precision means, and that fp16 leaves out a step whose gradients overflow."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from trainer.layers import random_source
from trainer.precision import (
    PRECISIONS,
    Arithmetic,
    explain_precision,
    find_precision,
    set_up_device,
    zero_momentum,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
chosen = pytest.mark.parametrize("precision", PRECISIONS[1:])


@pytest.fixture
def float32_products() -> Iterator[None]:
    """Leaves the settings of the process as they were."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn


def settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_auto_is_the_presets_own_on_a_gpu_and_fp32_on_a_cpu() -> None:
    assert find_precision("auto", "bf16", GPU) == "bf16"
    assert find_precision("auto", "bf16", CPU) == "fp32"


@chosen
def test_what_is_asked_for_is_taken_on_every_device(precision: str) -> None:
    assert {find_precision(precision, "bf16", device) for device in (CPU, GPU)} == {precision}


def test_tf32_is_explained_where_there_is_none() -> None:
    assert explain_precision("tf32", CPU) == "fp32 on cpu (tf32 is a number format of GPUs)"
    assert explain_precision("tf32", GPU) == "tf32 on cuda"
    assert explain_precision("bf16", CPU) == "bf16 on cpu"


@chosen
def test_a_gpu_rounds_float32_factors_only_with_tf32(
    precision: str, float32_products: None
) -> None:
    other = "fp32" if precision == "tf32" else "tf32"
    for asked, expected in (
        (precision, ("high", True) if precision == "tf32" else ("highest", False)),
        (other, ("high", True) if other == "tf32" else ("highest", False)),
    ):
        set_up_device(asked, GPU)
        assert settings() == expected


@chosen
def test_on_a_cpu_memory_is_kept_and_products_are_left_alone(
    precision: str, float32_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr("trainer.precision.keep_freed_memory", lambda: kept.append(True))
    torch.backends.cudnn.allow_tf32 = precision != "tf32"
    before = settings()
    set_up_device(precision, CPU)
    assert settings() == before and kept == [True]
    set_up_device(precision, GPU)
    assert kept == [True]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", torch.float32),
        ("tf32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ],
)
def test_the_forward_pass_computes_in_its_format(precision: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2)
    with Arithmetic(precision, CPU).autocast():
        assert layer(torch.ones(1, 3)).dtype == dtype


def step_of(
    arithmetic: Arithmetic, layer: nn.Linear, optimizer: torch.optim.SGD, factor: float = 1.0
) -> None:
    """A step on made-up numbers; a factor of infinity stands for an overflow."""
    numbers = torch.randn(4, 3, generator=random_source("cpu", "step"))
    optimizer.zero_grad(set_to_none=True)
    arithmetic.backward(layer(numbers).square().mean() * factor)
    arithmetic.update(optimizer)


def made(
    precision: str, *, nesterov: bool = False
) -> tuple[Arithmetic, nn.Linear, torch.optim.SGD]:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 3, generator=random_source("cpu", "layer")))
        layer.bias.zero_()
    optimizer = torch.optim.SGD(
        layer.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=nesterov,
        fused=precision == "fp16",
    )  # fmt: skip
    if precision == "fp16":
        zero_momentum(optimizer)
    return Arithmetic(precision, CPU), layer, optimizer


both = pytest.mark.parametrize("nesterov", [False, True])


@both
def test_scaled_gradients_make_the_step_of_unscaled_ones(nesterov: bool) -> None:
    plain, scaled = (made(name, nesterov=nesterov) for name in ("fp32", "fp16"))
    for arithmetic, layer, optimizer in (plain, scaled):
        for _ in range(5):
            step_of(arithmetic, layer, optimizer)
    torch.testing.assert_close(plain[1].weight, scaled[1].weight, rtol=1e-6, atol=1e-7)


@both
@pytest.mark.parametrize("overflows", [(0,), (0, 1, 2), (2,), (1, 3)])
def test_a_step_that_overflows_is_left_out(nesterov: bool, overflows: tuple[int, ...]) -> None:
    """Also the very first one: fused SGD would then go on with momentum it never wrote."""
    plain, scaled = (made(name, nesterov=nesterov) for name in ("fp32", "fp16"))
    for step in range(5):
        if step not in overflows:
            step_of(*plain)
        before = scaled[1].weight.clone()
        step_of(*scaled, factor=float("inf") if step in overflows else 1.0)
        assert torch.equal(scaled[1].weight, before) == (step in overflows)
    torch.testing.assert_close(plain[1].weight, scaled[1].weight, rtol=1e-6, atol=1e-7)
    assert scaled[0].state_dict()["scale"] == 65536 / 2 ** len(overflows)


def test_the_scale_continues_from_its_state() -> None:
    whole = made("fp16")
    for factor in (float("inf"), 1.0, float("inf")):
        step_of(*whole, factor=factor)
    state = whole[0].state_dict()
    again = Arithmetic("fp16", CPU)
    again.load_state_dict(state)
    assert again.state_dict() == state and state["scale"] == 16384


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_only_fp16_has_a_state(precision: str) -> None:
    arithmetic = Arithmetic(precision, CPU)
    arithmetic.load_state_dict({})
    assert arithmetic.state_dict() == {}
