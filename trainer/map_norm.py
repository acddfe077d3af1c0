"""Response norm within a map, fused; its plain form is `trainer.layers.MapResponseNorm`."""

from typing import Any

import torch
from torch import Tensor

from pipeline.triton_here import triton_works
from trainer.kernel_calls import block_channels, num_pixels, num_warps
from trainer.kernels import is_known
from trainer.layers import MapResponseNorm


def is_norm_fused(x: Tensor) -> bool:
    """Whether to take `norm_maps`: on an NVIDIA GPU where Triton works, for maps it knows."""
    return triton_works(x.device) and is_known(x)


def norm_maps(x: Tensor, norm: MapResponseNorm) -> Tensor:
    """What `norm` makes of maps (batch, channels, side, side), channels-last."""
    out: Tensor = _MapNorm.apply(x, norm)  # type: ignore[no-untyped-call]  # torch's
    return out


class _MapNorm(torch.autograd.Function):
    """The kernels of trainer/triton_map_norm.py."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: MapResponseNorm) -> Tensor:
        from trainer import triton_map_norm

        ctx.save_for_backward(x)
        ctx.norm = norm
        out = torch.empty_like(x)
        _launch_map_norm(
            triton_map_norm.normalise, (x, x, out, out), k=norm.k, norm=norm, backward=False
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from trainer import triton_map_norm

        (x,), norm = ctx.saved_tensors, ctx.norm
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        scaled, term, out = (torch.empty_like(x) for _ in range(3))
        _launch_map_norm(
            triton_map_norm.normalise, (x, gradient, scaled, term), k=norm.k, norm=norm,
            backward=True,
        )  # fmt: skip
        _launch_map_norm(triton_map_norm.subtract_terms, (x, scaled, term, out), norm=norm)
        return out, None


def _launch_map_norm(
    kernel: Any, tensors: tuple[Tensor, ...], *, norm: MapResponseNorm, **constants: Any
) -> None:
    from trainer import triton_map_norm

    x, down = tensors[0], triton_map_norm.OPTIONS["block_pixels"]
    channels, pixels = x.shape[1], num_pixels(x)
    across = block_channels(channels, whole=False)
    with torch.cuda.device(x.device if x.is_cuda else -1):
        kernel[(-(-pixels // down), -(-channels // across))](
            *tensors, pixels, channels=channels, side=x.shape[2], size=norm.size,
            alpha=norm.alpha, beta=norm.beta, block_channels=across,
            num_warps=num_warps(down * across), **constants, **triton_map_norm.OPTIONS,
        )  # fmt: skip
