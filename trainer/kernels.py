"""Fused GPU kernels; what they fuse, the network has layer by layer where they do not run."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.triton_here import triton_works
from trainer.forms import Maps
from trainer.layers import MapResponseNorm, ResponseNorm

MAX_ELEMENTS = 2**31 - 1  # places within maps are 32-bit numbers
FUSED_SIZE = 5  # channels of a sum that the kernel is written for: the paper's
PARTS = {torch.float32: 3, torch.bfloat16: 1, torch.float16: 1}  # of eight bits, in products
THREAD_ELEMENTS = 16  # of a block
MAX_BLOCK_CHANNELS, MIN_BLOCK_CHANNELS = 64, 16
NO_NORM, RESPONSE, BATCH = 0, 1, 2  # as trainer/triton_kernels.py has them


@dataclass(frozen=True, kw_only=True)
class After:
    """What follows a convolution and its bias: ReLU if `relu`, norm, max pooling with stride 2
    unless pool_px is 1, ReLU if `relu_last`."""

    norm: nn.Module | None = None
    pool_px: int = 1
    relu: bool = True
    relu_last: bool = False


@dataclass(frozen=True, kw_only=True)
class _How:
    """What kernels are compiled for; slabs: runs of channels that are computed apart."""

    kind: int
    k: float
    alpha: float
    beta: float
    slabs: int
    num_out: int
    side: int
    out_side: int
    pool: int
    stride: int
    relu: bool
    relu_last: bool
    epsilon: float


def is_fused(maps: Maps, after: After) -> bool:
    """Whether to take `finish`: on an NVIDIA GPU where Triton works, for maps it knows."""
    return triton_works(maps[0].device) and fits(maps, after)


def fits(maps: Maps, after: After) -> bool:
    """Whether `finish` computes such maps: channels-last, square, of types and norms it knows."""
    norm = after.norm
    knows = norm is None or isinstance(norm, nn.Identity)
    knows |= isinstance(norm, ResponseNorm) and norm.size == FUSED_SIZE
    knows |= isinstance(norm, nn.BatchNorm2d) and norm.training and norm.momentum is not None
    return knows and all(_is_known(x) for x in maps)


def _is_known(x: Tensor) -> bool:
    return (
        x.dtype in PARTS
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
    batch = after.norm if isinstance(after.norm, nn.BatchNorm2d) else None
    how = _how(after, maps, num_out)
    scale, shift = (None, None) if batch is None else (batch.weight, batch.bias)
    found = _Finish.apply(how, bias, scale, shift, *maps)  # type: ignore[no-untyped-call]
    if batch is not None:
        mean, variance = found[num_out:]
        _move_averages(batch, mean, variance, _num_pixels(maps[0]))
    return tuple(found[:num_out])


def _how(after: After, maps: Maps, num_out: int) -> _How:
    norm, side = after.norm, maps[0].shape[2]
    stride = 1 if after.pool_px == 1 else 2
    kind, columns, (k, alpha, beta), epsilon = NO_NORM, 1, (0.0, 0.0, 0.0), 0.0
    if isinstance(norm, ResponseNorm):
        kind, columns, (k, alpha, beta) = RESPONSE, norm.columns, (norm.k, norm.alpha, norm.beta)
    if isinstance(norm, nn.BatchNorm2d):
        kind, epsilon = BATCH, norm.eps
    return _How(
        kind=kind,
        k=k,
        alpha=alpha,
        beta=beta,
        slabs=max(len(maps), num_out, columns),
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
    """The kernels of trainer/triton_kernels.py; keeps the maps and a byte for each output."""

    @staticmethod
    def forward(
        ctx: Any,
        how: _How,
        bias: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        *maps: Tensor,
    ) -> tuple[Tensor, ...]:
        batch, channels = len(maps[0]), sum(x.shape[1] for x in maps)
        shape = (batch, channels // how.num_out, how.out_side, how.out_side)
        outs = [_empty(shape, maps[0].dtype, maps[0].device) for _ in range(how.num_out)]
        chosen = [_empty(shape, torch.uint8, x.device) for x in outs] if how.pool > 1 else outs
        statistics: tuple[Tensor, ...] = ()
        factor = offset = bias
        if how.kind == BATCH:
            assert scale is not None and shift is not None
            sums = _launch_sums(how, bias, maps) / (batch * how.side**2)
            mean, variance = sums[0], (sums[1] - sums[0].square()).clamp_min_(0)
            inverse = (variance + how.epsilon).rsqrt()
            factor, offset = scale * inverse, shift - mean * (scale * inverse)
            statistics = mean.float(), variance.float()
            ctx.mark_non_differentiable(*statistics)
            ctx.inverse, ctx.mean = inverse, mean
        _launch_finish(how, bias, factor, offset, maps, outs, chosen)
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
            of_shift, product = _launch_sums(how, bias, maps, chosen, given)
            of_scale = (product - ctx.mean * of_shift) * ctx.inverse
            count = len(maps[0]) * how.side**2
            first = scale * ctx.inverse
            second = -first * ctx.inverse * of_scale / count
            factors = first, second, -first * of_shift / count - second * ctx.mean
            of_scale, of_shift = of_scale.to(scale.dtype), of_shift.to(scale.dtype)
        outs = [torch.empty_like(x) for x in maps]
        of_bias = _launch_backward(how, bias, factors, maps, chosen, given, outs)
        return None, of_bias, of_scale, of_shift, *outs


def _launch_finish(
    how: _How,
    bias: Tensor | None,
    factor: Tensor | None,
    offset: Tensor | None,
    maps: Maps,
    outs: list[Tensor],
    chosen: list[Tensor],
) -> None:
    from trainer import triton_kernels  # Triton only where it is used

    grouped = zip(
        _slabs(maps, how), _slabs(outs, how), _slabs(chosen, how), _of_slabs(bias, maps, how),
        _of_slabs(factor, maps, how), _of_slabs(offset, maps, how),
        strict=True,
    )  # fmt: skip
    for given, out, choices, added, scale, shift in grouped:
        _launch(
            triton_kernels.finish, how, given, _num_pixels(out), 1,
            (given, added, scale, shift, out, choices),
            relu_last=how.relu_last, out_stride=outs[0].shape[1], maps_stride=maps[0].shape[1],
            biased=bias is not None, **_pooling(how), **_norm(how),
        )  # fmt: skip


def _launch_backward(
    how: _How,
    bias: Tensor | None,
    factors: tuple[Tensor | None, ...],
    maps: list[Tensor],
    chosen: list[Tensor],
    gradients: list[Tensor],
    outs: list[Tensor],
) -> Tensor | None:
    """Writes the gradient of the maps; returns that of the bias."""
    from trainer import triton_kernels

    options, sums = triton_kernels.OPTIONS, []
    grouped = zip(
        _slabs(maps, how), _slabs(chosen, how), _slabs(gradients, how), _slabs(outs, how),
        _of_slabs(bias, maps, how), *(_of_slabs(factor, maps, how) for factor in factors),
        strict=True,
    )  # fmt: skip
    for given, choices, gradient, out, added, first, second, third in grouped:
        sums.append(_sums_of_programs(given))
        _launch(
            triton_kernels.finish_backward, how, given, _num_pixels(given), options["num_blocks"],
            (given, added, first, second, third, choices, gradient, out, sums[-1]),
            out_stride=gradients[0].shape[1], maps_stride=maps[0].shape[1],
            biased=bias is not None, num_blocks=options["num_blocks"],
            parts=PARTS[given.dtype], wide=options["wide"], **_pooling(how), **_norm(how),
        )  # fmt: skip
    return None if bias is None else torch.cat([one.sum(0) for one in sums]).to(bias.dtype)


def _launch_sums(
    how: _How,
    bias: Tensor | None,
    maps: Maps | list[Tensor],
    chosen: list[Tensor] | None = None,
    gradients: list[Tensor] | None = None,
) -> Tensor:
    """Sums over batch and pixels, float64 (2, channels): of activations and of their squares.

    With gradients: of what arrives at the normalised maps, and of that times the activations.
    """
    from trainer import triton_kernels

    num_blocks, sums = triton_kernels.OPTIONS["num_blocks"], []
    arriving = gradients is not None
    kernel = triton_kernels.sum_up_arriving if arriving else triton_kernels.sum_up
    own: dict[str, Any] = {"maps_stride": maps[0].shape[1], "biased": bias is not None}
    if gradients is not None:
        own |= {"out_stride": gradients[0].shape[1], **_pooling(how)}
    others = (_slabs(chosen or maps, how), _slabs(gradients or maps, how))
    grouped = zip(_slabs(maps, how), _of_slabs(bias, maps, how), *others, strict=True)
    for given, added, choices, gradient in grouped:
        sums.append(_sums_of_programs(given, 2))
        tensors = (given, added, *((choices, gradient) if arriving else ()), sums[-1])
        _launch(
            kernel, how, given, _num_pixels(given), num_blocks, tensors, num_blocks=num_blocks,
            **own,
        )  # fmt: skip
    return torch.cat([one.sum(1, dtype=torch.float64) for one in sums], 1)


def _launch(
    kernel: Any,
    how: _How,
    given: Tensor,
    num_pixels: int,
    blocks_each: int,
    tensors: tuple[Any, ...],
    **constants: Any,
) -> None:
    """One program for so many blocks of pixels, and for one of the channels of `given`."""
    from trainer import triton_kernels

    channels, down = given.shape[1], triton_kernels.OPTIONS["block_pixels"]
    across = _block_channels(channels, whole=how.kind == RESPONSE)
    grid = -(-num_pixels // (down * blocks_each)), -(-channels // across)
    with torch.cuda.device(given.device if given.is_cuda else -1):  # Triton's is the current
        kernel[grid](
            *tensors, num_pixels, channels=channels, relu=how.relu, block_pixels=down,
            block_channels=across, num_warps=_num_warps(down * across), num_stages=1, **constants,
            enable_fp_fusion=triton_kernels.OPTIONS["enable_fp_fusion"],
        )  # fmt: skip


def _num_warps(elements: int) -> int:
    """Of a program with so many elements in a block."""
    return min(16, max(2, elements // (32 * THREAD_ELEMENTS)))


def _block_channels(channels: int, *, whole: bool) -> int:
    """Of a program; whole: all there are, as sums over neighbours need them."""
    power = 1 << (channels - 1).bit_length()
    if whole:
        return max(MIN_BLOCK_CHANNELS, power)
    fitting = channels & -channels  # the largest power of two that divides it
    return max(MIN_BLOCK_CHANNELS, min(MAX_BLOCK_CHANNELS, fitting if fitting >= 32 else power))


def _pooling(how: _How) -> dict[str, Any]:
    return {name: getattr(how, name) for name in ("side", "out_side", "pool", "stride")}


def _norm(how: _How) -> dict[str, Any]:
    return {name: getattr(how, name) for name in ("kind", "k", "alpha", "beta")}


def _slabs(tensors: Maps | list[Tensor], how: _How) -> list[Tensor]:
    """Views of maps, one for each slab."""
    each = how.slabs // len(tensors)
    return [slab for tensor in tensors for slab in tensor.chunk(each, 1)]


def _of_slabs(values: Tensor | None, maps: Maps | list[Tensor], how: _How) -> list[Tensor]:
    """The values of each slab's channels; where there are none, something to point to."""
    if values is None:
        return [maps[0]] * how.slabs
    return list(values.float().chunk(how.slabs))


def _num_pixels(x: Tensor) -> int:
    return len(x) * x.shape[2] * x.shape[3]


def _sums_of_programs(given: Tensor, *first: int) -> Tensor:
    from trainer.triton_kernels import OPTIONS

    programs = -(-_num_pixels(given) // (OPTIONS["block_pixels"] * OPTIONS["num_blocks"]))
    return torch.empty(*first, programs, given.shape[1], device=given.device)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


def is_norm_fused(x: Tensor) -> bool:
    """Whether to take `norm_maps`: on an NVIDIA GPU where Triton works, for maps it knows."""
    return triton_works(x.device) and _is_known(x)


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
    channels, num_pixels = x.shape[1], len(x) * x.shape[2] * x.shape[3]
    across = _block_channels(channels, whole=False)
    with torch.cuda.device(x.device if x.is_cuda else -1):
        kernel[(-(-num_pixels // down), -(-channels // across))](
            *tensors, num_pixels, channels=channels, side=x.shape[2], size=norm.size,
            alpha=norm.alpha, beta=norm.beta, block_channels=across,
            num_warps=_num_warps(down * across), **constants, **triton_map_norm.OPTIONS,
        )  # fmt: skip
