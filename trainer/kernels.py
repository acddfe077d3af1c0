"""Fused GPU kernels; what they fuse, the network has layer by layer where they do not run."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.triton_here import triton_works
from trainer.layers import ResponseNorm

MAX_ELEMENTS = 2**31 - 1  # places within a map are 32-bit numbers
FUSED_SIZE = 5  # channels of a sum that the kernel is written for: the paper's
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class _Constants:
    """What a kernel is compiled for; names as in trainer/triton_kernels.py."""

    k: float
    alpha: float
    beta: float
    channels: int
    width: int
    side: int
    out_side: int
    pool: int
    stride: int
    relu: bool


def is_fused(x: Tensor, norm: ResponseNorm) -> bool:
    """Whether to take `fused`: on an NVIDIA GPU where Triton works, for maps it knows."""
    return triton_works(x.device) and fits(x, norm)


def fits(x: Tensor, norm: ResponseNorm) -> bool:
    """Whether the kernel computes such maps: channels-last, square, of types it knows."""
    return (
        norm.size == FUSED_SIZE
        and x.dtype in DTYPES
        and x.shape[2] == x.shape[3]
        and 0 < x.numel() <= MAX_ELEMENTS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def fused(x: Tensor, norm: ResponseNorm, pool_px: int, relu: bool) -> Tensor:
    """Rectification if `relu`, response norm, and max pooling with stride 2 unless pool_px is 1.

    x: (batch, channels, side, side), which `fits`. Its plain form is those layers one by one.
    """
    side = x.shape[2]
    stride = 1 if pool_px == 1 else 2
    constants = _Constants(
        k=norm.k,
        alpha=norm.alpha,
        beta=norm.beta,
        channels=x.shape[1],
        width=x.shape[1] // norm.columns,
        side=side,
        out_side=-(-(side - pool_px) // stride) + 1,  # rounded up, as ceil_mode
        pool=pool_px,
        stride=stride,
        relu=relu,
    )
    out: Tensor = _FusedNormPool.apply(x, constants)  # type: ignore[no-untyped-call]  # torch's
    return out


class _FusedNormPool(torch.autograd.Function):
    """The kernels of trainer/triton_kernels.py; keeps the maps and a byte for each output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, constants: _Constants) -> Tensor:
        from trainer import triton_kernels  # Triton only where it is used

        out, chosen = triton_kernels.norm_pool(x, asdict(constants))
        ctx.save_for_backward(x, chosen)
        ctx.constants = constants
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from trainer import triton_kernels

        x, chosen = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        found = triton_kernels.norm_pool_backward(x, chosen, gradient, asdict(ctx.constants))
        return found, None
