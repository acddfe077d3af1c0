"""Calls of the kernels of what follows a convolution, slab by slab of neighbouring channels.

Triton is imported only where they are used.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.forms import Maps

PARTS = {torch.float32: 3, torch.bfloat16: 2, torch.float16: 2}  # of eight bits, in products
THREAD_ELEMENTS = 16  # of a block
BACKWARD_THREAD_ELEMENTS = 32
MAX_BLOCK_CHANNELS, MIN_BLOCK_CHANNELS = 64, 16
NO_NORM, RESPONSE, BATCH = 0, 1, 2  # as trainer/triton_kernels.py has them


@dataclass(frozen=True, kw_only=True)
class How:
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


def activate(how: How, bias: Tensor | None, maps: Maps) -> Maps:
    """Maps with their bias, rectified where they are to be before their norm; as new tensors."""
    if bias is None and not how.relu:
        return maps
    alone = dataclasses.replace(
        how, kind=NO_NORM, slabs=len(maps), num_out=len(maps), out_side=how.side, pool=1, stride=1,
        relu_last=False,
    )  # fmt: skip
    outs = [torch.empty_like(x) for x in maps]
    launch_finish(alone, bias, bias, bias, maps, outs, outs)
    return tuple(outs)


def launch_response(how: How, maps: Maps, outs: list[Tensor], chosen: list[Tensor]) -> None:
    from trainer import triton_kernels, triton_response

    block = triton_kernels.OPTIONS["block_elements"]
    for given, out, choices in zip(
        _slabs(maps, how), _slabs(outs, how), _slabs(chosen, how), strict=True
    ):
        with torch.cuda.device(given.device if given.is_cuda else -1):  # Triton's is the current
            triton_response.respond[(-(-out.numel() // block),)](
                given, out, choices, out.numel(), maps_stride=maps[0].shape[1],
                out_stride=outs[0].shape[1], channels=given.shape[1], relu_last=how.relu_last,
                k=how.k, alpha=how.alpha, beta=how.beta, block_elements=block, num_warps=4,
                enable_fp_fusion=triton_kernels.OPTIONS["enable_fp_fusion"], **_pooling(how),
            )  # fmt: skip


def launch_finish(
    how: How,
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
            triton_kernels.finish, how, given, num_pixels(out),
            (given, added, scale, shift, out, choices),
            relu_last=how.relu_last, out_stride=outs[0].shape[1], maps_stride=maps[0].shape[1],
            biased=bias is not None, kind=how.kind, **_pooling(how),
        )  # fmt: skip


def launch_backward(
    how: How,
    bias: Tensor | None,
    factors: tuple[Tensor | None, ...],
    maps: list[Tensor],
    chosen: list[Tensor],
    gradients: list[Tensor],
    outs: list[Tensor],
) -> Tensor | None:
    """Writes the gradient of the maps; returns that of the bias."""
    from trainer import triton_kernels

    wide, sums = triton_kernels.OPTIONS["wide"], []
    grouped = zip(
        _slabs(maps, how), _slabs(chosen, how), _slabs(gradients, how), _slabs(outs, how),
        _of_slabs(bias, maps, how), *(_of_slabs(factor, maps, how) for factor in factors),
        strict=True,
    )  # fmt: skip
    for given, choices, gradient, out, added, first, second, third in grouped:
        sums.append(_sums_of_programs(given, 1))
        _launch(
            triton_kernels.finish_backward, how, given, num_pixels(given),
            (given, added, first, second, third, choices, gradient, out, sums[-1]),
            thread_elements=BACKWARD_THREAD_ELEMENTS, out_stride=gradients[0].shape[1],
            maps_stride=maps[0].shape[1], summed=bias is not None,
            biased=bias is not None and how.kind != RESPONSE,  # whose maps have it already
            parts=PARTS[given.dtype], wide=wide, kind=how.kind, k=how.k, alpha=how.alpha,
            beta=how.beta, **_pooling(how),
        )  # fmt: skip
    return None if bias is None else torch.cat([one.sum(0) for one in sums]).to(bias.dtype)


def launch_sums(
    how: How,
    bias: Tensor | None,
    maps: Maps | list[Tensor],
    chosen: list[Tensor] | None = None,
    gradients: list[Tensor] | None = None,
) -> Tensor:
    """Sums over batch and pixels, float64 (2, channels): of activations and of their squares.

    With gradients: of what arrives at the normalised maps, and of that times the activations.
    """
    from trainer import triton_kernels, triton_sums

    num_blocks, sums = triton_kernels.OPTIONS["num_blocks"], []
    arriving = gradients is not None
    kernel = triton_sums.sum_up_arriving if arriving else triton_sums.sum_up
    own: dict[str, Any] = {"maps_stride": maps[0].shape[1], "biased": bias is not None}
    if gradients is not None:
        own |= {"out_stride": gradients[0].shape[1], **_pooling(how)}
    others = (_slabs(chosen or maps, how), _slabs(gradients or maps, how))
    grouped = zip(_slabs(maps, how), _of_slabs(bias, maps, how), *others, strict=True)
    for given, added, choices, gradient in grouped:
        sums.append(_sums_of_programs(given, num_blocks, 2))
        tensors = (given, added, *((choices, gradient) if arriving else ()), sums[-1])
        _launch(kernel, how, given, num_pixels(given), tensors, num_blocks=num_blocks, **own)
    return torch.cat([one.sum(1, dtype=torch.float64) for one in sums], 1)


def _launch(
    kernel: Any,
    how: How,
    given: Tensor,
    pixels: int,
    tensors: tuple[Any, ...],
    *,
    thread_elements: int = THREAD_ELEMENTS,
    **constants: Any,
) -> None:
    """One program for a block of pixels, or num_blocks, and for one of the channels of `given`."""
    from trainer import triton_kernels

    channels, down = given.shape[1], triton_kernels.OPTIONS["block_pixels"]
    across = block_channels(channels, whole=how.kind == RESPONSE)
    of_program = down * constants.get("num_blocks", 1)
    with torch.cuda.device(given.device if given.is_cuda else -1):  # Triton's is the current
        kernel[(-(-pixels // of_program), -(-channels // across))](
            *tensors, pixels, channels=channels, relu=how.relu, block_pixels=down,
            block_channels=across, num_warps=num_warps(down * across, thread_elements),
            num_stages=1, enable_fp_fusion=triton_kernels.OPTIONS["enable_fp_fusion"],
            **constants,
        )  # fmt: skip


def num_warps(elements: int, thread_elements: int = THREAD_ELEMENTS) -> int:
    """Of a program with so many elements in a block."""
    return min(16, max(2, elements // (32 * thread_elements)))


def block_channels(channels: int, *, whole: bool) -> int:
    """Of a program; whole: all there are, as sums over neighbours need them."""
    power = 1 << (channels - 1).bit_length()
    if whole:
        return max(MIN_BLOCK_CHANNELS, power)
    fitting = channels & -channels  # the largest power of two that divides it
    return max(MIN_BLOCK_CHANNELS, min(MAX_BLOCK_CHANNELS, fitting if fitting >= 32 else power))


def _pooling(how: How) -> dict[str, Any]:
    return {name: getattr(how, name) for name in ("side", "out_side", "pool", "stride")}


def _slabs(tensors: Maps | list[Tensor], how: How) -> list[Tensor]:
    """Views of maps, one for each slab."""
    each = how.slabs // len(tensors)
    return [slab for tensor in tensors for slab in tensor.chunk(each, 1)]


def _of_slabs(values: Tensor | None, maps: Maps | list[Tensor], how: How) -> list[Tensor]:
    """The values of each slab's channels; where there are none, something to point to."""
    if values is None:
        return [maps[0]] * how.slabs
    return list(values.float().chunk(how.slabs))


def num_pixels(x: Tensor) -> int:
    return len(x) * x.shape[2] * x.shape[3]


def _sums_of_programs(given: Tensor, num_blocks: int, *first: int) -> Tensor:
    from trainer.triton_kernels import OPTIONS

    programs = -(-num_pixels(given) // (OPTIONS["block_pixels"] * num_blocks))
    return torch.empty(*first, programs, given.shape[1], device=given.device)


def empty_maps(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
