"""The fused kernel is its plain form, forward and backward: run by Triton's interpreter here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.triton_here import has_triton
from trainer.kernels import fits, fused, is_fused
from trainer.layers import ResponseNorm

needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
CASES = [  # channels, columns, side, pool_px, relu
    (12, 1, 7, 3, True),  # as the paper has layers 1 and 2
    (12, 2, 7, 3, True),
    (16, 2, 7, 3, False),  # as the 2012 code has layer 1
    (10, 2, 6, 2, True),  # rounded up: the last windows reach over the edge
    (10, 1, 5, 2, False),
    (12, 2, 5, 1, True),  # without pooling, as the 2012 code has layer 2
    (4, 2, 6, 3, True),  # columns narrower than the sum
]


def norm(columns: int, alpha: float = 2e-2) -> ResponseNorm:
    """The paper's, with an alpha that moves numbers near 1 as its own moves pixels."""
    return ResponseNorm(size=5, k=2.0, alpha=alpha, beta=0.75, columns=columns)


def maps(channels: int, side: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    made = torch.randn(2, channels, side, side, generator=source) * 5
    return made.to(dtype).contiguous(memory_format=torch.channels_last)


def plain(x: Tensor, layer: ResponseNorm, pool_px: int, relu: bool) -> Tensor:
    """The oracle: layer by layer."""
    out: Tensor = layer(x.relu() if relu else x)
    return out if pool_px == 1 else F.max_pool2d(out, pool_px, 2, ceil_mode=True)


def both_ways(form: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """What a form gives, and the gradient of its input."""
    given = x.clone().requires_grad_()
    out = form(given * 1, *arguments)
    source = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=source).to(x)
    (out.float() * weight.float()).sum().backward()
    assert given.grad is not None
    return out.detach(), given.grad


def compare_all() -> None:
    """Every case, fused against plain in the same type; called where Triton interprets.

    Rounded to 16 bits, equal values within a window are rounded apart by either form, and the
    gradient goes to another of them: there only norms without pooling are compared both ways.
    """
    from trainer import triton_kernels

    triton_kernels.OPTIONS["block"] = 2048  # each program costs the interpreter as much
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
        for channels, columns, side, pool_px, relu in CASES:
            x, layer = maps(channels, side, dtype), norm(columns)
            assert fits(x, layer)
            found = both_ways(fused, x, layer, pool_px, relu)
            expected = both_ways(plain, x, layer, pool_px, relu)
            num_compared = 2 if dtype == torch.float32 or pool_px == 1 else 1
            for one, other in list(zip(found, expected, strict=True))[:num_compared]:
                assert one.dtype == other.dtype and one.shape == other.shape
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@needs_triton
@pytest.mark.slow
def test_the_kernel_is_the_plain_form_both_ways() -> None:
    """In a process of its own: Triton decides whether to interpret when it is imported."""
    subprocess.run(
        [
            sys.executable, "-W", "error", "-c",
            "from tests.trainer.test_kernels import compare_all; compare_all()",
        ],
        check=True,
        timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trainer import triton_kernels

constants = {
    "k": 2.0, "alpha": 1e-4, "beta": 0.75, "channels": 96, "width": 48, "side": 55,
    "out_side": 27, "pool": 3, "stride": 2, "relu": True,
} | triton_kernels.OPTIONS
options = {"enable_fp_fusion": constants.pop("enable_fp_fusion")}
for kernel, maps in (
    (triton_kernels._norm_pool, ("maps", "out")),
    (triton_kernels._norm_pool_backward, ("maps", "gradient", "out")),
):
    signature = {name: "constexpr" for name in kernel.arg_names}
    signature |= {name: "*bf16" for name in maps} | {"chosen": "*u8", "num_elements": "i32"}
    source = ASTSource(kernel, signature, constants)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert ".target sm_90" in built.asm["ptx"]
"""


@needs_triton
def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """To the machine code of an H100 or H200, in an empty cache."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILE],
        check=True,
        timeout=600,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    )


def test_without_a_gpu_the_kernel_is_left_alone() -> None:
    x, layer = maps(12, 7, torch.float32), norm(2)
    assert fits(x, layer) and not is_fused(x, layer)


@pytest.mark.parametrize(
    ("x", "size"),
    [
        (maps(12, 7, torch.float64), 5),
        (maps(12, 7, torch.float32), 3),
        (maps(12, 7, torch.float32).contiguous(), 5),
        (maps(12, 7, torch.float32)[:, :, :5], 5),
        (maps(12, 7, torch.float32)[:0], 5),
    ],
    ids=["float64", "another size", "not channels-last", "not square", "empty"],
)
def test_maps_that_the_kernel_does_not_know_take_the_plain_form(x: Tensor, size: int) -> None:
    layer = ResponseNorm(size=size, k=2.0, alpha=1e-4, beta=0.75, columns=2)
    assert not fits(x, layer)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here")
@pytest.mark.parametrize(
    ("channels", "side", "pool_px"), [(96, 55, 3), (256, 27, 3), (256, 27, 1)]
)
def test_on_a_gpu_the_kernel_is_the_plain_form_at_full_size(
    channels: int, side: int, pool_px: int
) -> None:
    x, layer = maps(channels, side, torch.float32).cuda(), norm(2)
    x = x.contiguous(memory_format=torch.channels_last)
    assert is_fused(x, layer)
    found = both_ways(fused, x.cuda(), layer, pool_px, True)
    expected = both_ways(plain, x, layer, pool_px, True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
