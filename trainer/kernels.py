"""Fused GPU kernels; what they fuse, the network has layer by layer where they do not run."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.triton_here import triton_works
from trainer.forms import Maps, joined
from trainer.kernel_calls import (
    BATCH,
    NO_NORM,
    PARTS,
    RESPONSE,
    How,
    activate,
    empty_maps,
    launch_backward,
    launch_finish,
    launch_response,
    launch_sums,
    num_pixels,
)
from trainer.layers import ResponseNorm

MAX_ELEMENTS = 2**31 - 1  # places within maps are 32-bit numbers
FUSED_SIZE = 5  # channels of a sum that the kernels are written for: the paper's
MAX_COLUMN_CHANNELS = 128  # in a response norm: a program takes a whole column; the paper's
DTYPES = tuple(PARTS)


@dataclass(frozen=True, kw_only=True)
class After:
    """What follows a convolution and its bias.

    ReLU if `relu`, norm, max pooling with stride 2 unless pool_px is 1, ReLU if `relu_last`.
    """

    norm: nn.Module | None = None
    pool_px: int = 1
    relu: bool = True
    relu_last: bool = False


def is_fused(maps: Maps, after: After) -> bool:
    """Whether to take `finish`: on an NVIDIA GPU where Triton works, for maps it knows."""
    return triton_works(maps[0].device) and fits(maps, after)


def fits(maps: Maps, after: After) -> bool:
    """Whether `finish` computes such maps: channels-last, square, of types and norms it knows.

    Not a ReLU that comes last without pooling: backward knows where it let nothing through from
    the byte that is kept of each window.
    """
    norm = after.norm
    if after.relu_last and after.pool_px == 1:
        return False
    knows = norm is None or isinstance(norm, nn.Identity)
    if isinstance(norm, ResponseNorm):
        channels = sum(x.shape[1] for x in maps) // norm.columns
        knows = norm.size == FUSED_SIZE and channels <= MAX_COLUMN_CHANNELS
    knows |= isinstance(norm, nn.BatchNorm2d) and norm.training and norm.momentum is not None
    return knows and all(is_known(x) for x in maps)


def is_known(x: Tensor) -> bool:
    return (
        x.dtype in DTYPES
        and x.shape[2] == x.shape[3]
        and 0 < x.numel() <= MAX_ELEMENTS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def finish(maps: Maps, bias: Tensor | None, after: After, num_out: int = 1) -> Maps:
    """What comes of maps, which `fits`: (batch, channels, side, side) in `num_out` tensors.

    maps: one tensor of all channels or two of a half each, as what is returned. bias: of all
    channels. In training; a batch norm's running averages move. Its plain form is those layers
    one by one.
    """
    if isinstance(after.norm, ResponseNorm) and len(maps) > after.norm.columns:
        maps = (joined(maps),)  # its sum goes over the edge between them
    batch = after.norm if isinstance(after.norm, nn.BatchNorm2d) else None
    how = _how(after, maps, num_out)
    scale, shift = (None, None) if batch is None else (batch.weight, batch.bias)
    found = _Finish.apply(how, bias, scale, shift, *maps)  # type: ignore[no-untyped-call]
    if batch is not None:
        mean, variance = found[num_out:]
        _move_averages(batch, mean, variance, num_pixels(maps[0]))
    return tuple(found[:num_out])


def _how(after: After, maps: Maps, num_out: int) -> How:
    norm, side = after.norm, maps[0].shape[2]
    stride = 1 if after.pool_px == 1 else 2
    kind, columns, (k, alpha, beta), epsilon = NO_NORM, 1, (0.0, 0.0, 0.0), 0.0
    if isinstance(norm, ResponseNorm):
        kind, columns, (k, alpha, beta) = RESPONSE, norm.columns, (norm.k, norm.alpha, norm.beta)
        assert num_out <= columns
    if isinstance(norm, nn.BatchNorm2d):
        kind, epsilon = BATCH, norm.eps
    return How(
        kind=kind,
        k=k,
        alpha=alpha,
        beta=beta,
        slabs=columns if kind == RESPONSE else max(len(maps), num_out),
        num_out=num_out,
        side=side,
        out_side=-(-(side - after.pool_px) // stride) + 1,  # rounded up, as ceil_mode
        pool=after.pool_px,
        stride=stride,
        relu=after.relu,
        relu_last=after.relu_last,
        epsilon=epsilon,
    )


def _move_averages(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """As torch does: the variance of the averages is that of a sample."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.momentum is not None and norm.num_batches_tracked is not None
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / max(1, count - 1)), norm.momentum)
        norm.num_batches_tracked += 1


class _Finish(torch.autograd.Function):
    """Those of trainer/kernel_calls.py; keeps the maps and a byte for each output."""

    @staticmethod
    def forward(
        ctx: Any,
        how: How,
        bias: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        *maps: Tensor,
    ) -> tuple[Tensor, ...]:
        batch, channels = len(maps[0]), sum(x.shape[1] for x in maps)
        shape = (batch, channels // how.num_out, how.out_side, how.out_side)
        outs = [empty_maps(shape, maps[0].dtype, maps[0].device) for _ in range(how.num_out)]
        chosen = [empty_maps(shape, torch.uint8, x.device) for x in outs] if how.pool > 1 else outs
        statistics: tuple[Tensor, ...] = ()
        factor = offset = bias
        if how.kind == BATCH:
            assert scale is not None and shift is not None
            sums = launch_sums(how, bias, maps) / (batch * how.side**2)
            mean, variance = sums[0], (sums[1] - sums[0].square()).clamp_min_(0)
            inverse = (variance + how.epsilon).rsqrt()
            factor, offset = scale * inverse, shift - mean * (scale * inverse)
            statistics = mean.float(), variance.float()
            ctx.mark_non_differentiable(*statistics)
            ctx.inverse, ctx.mean = inverse, mean
        if how.kind == RESPONSE:
            maps = activate(how, bias, maps)
            launch_response(how, maps, outs, chosen)
        else:
            launch_finish(how, bias, factor, offset, maps, outs, chosen)
        ctx.save_for_backward(bias, scale, *maps, *(chosen if how.pool > 1 else ()))
        ctx.how = how
        return (*outs, *statistics)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        how, (bias, scale, *kept) = ctx.how, ctx.saved_tensors
        given = [
            gradient.contiguous(memory_format=torch.channels_last)
            for gradient in gradients[: how.num_out]
        ]
        maps = kept[: len(kept) - (how.num_out if how.pool > 1 else 0)]
        chosen = kept[len(maps) :] or given
        factors: tuple[Tensor | None, ...] = (bias, bias, bias)
        of_scale = of_shift = None
        if how.kind == BATCH:
            of_shift, product = launch_sums(how, bias, maps, chosen, given)
            of_scale = (product - ctx.mean * of_shift) * ctx.inverse
            count = len(maps[0]) * how.side**2
            first = scale * ctx.inverse
            second = -first * ctx.inverse * of_scale / count
            factors = first, second, -first * of_shift / count - second * ctx.mean
            of_scale, of_shift = of_scale.to(scale.dtype), of_shift.to(scale.dtype)
        outs = [torch.empty_like(x) for x in maps]
        of_bias = launch_backward(how, bias, factors, maps, chosen, given, outs)
        return None, of_bias, of_scale, of_shift, *outs
