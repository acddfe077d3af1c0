"""What follows a convolution, as one Triton kernel each way: bias, ReLU, norm, pooling.

Maps are channels-last. A program takes blocks of pixels and of neighbouring channels. Sums and
powers are in float32. Response norm forward and the sums of batch norm are kernels of their own.
Called by trainer/kernel_calls.py; trainer/kernels.py has the plain form beside it.
(Annotations of kernels are strings: Triton would look up any other name in them.)
"""

from typing import Any

import triton
import triton.language as tl

from trainer.triton_maps import activated, arriving, greater, of_channels, rectified, store_pooled
from trainer.triton_response import spread

NO_NORM, RESPONSE, BATCH = 0, 1, 2  # kinds of norm
OPTIONS: dict[str, Any] = {
    "block_pixels": 64,
    "num_blocks": 4,  # of pixels, one after the other, that a program only sums up
    "block_elements": 256,  # of a program that takes a run of elements
    "wide": False,  # products of 16-bit numbers in float32: what Triton's interpreter can do
    "enable_fp_fusion": True,  # a * b + c rounded once; told, as Triton's default will change
}
_RESPONSE: tl.constexpr = tl.constexpr(RESPONSE)
_BATCH: tl.constexpr = tl.constexpr(BATCH)


@triton.jit
def finish(
    maps: "Any",
    bias: "Any",
    scale: "Any",
    shift: "Any",
    out: "Any",
    chosen: "Any",
    num_pixels: "Any",
    maps_stride: tl.constexpr,
    out_stride: tl.constexpr,
    channels: tl.constexpr,
    side: tl.constexpr,
    out_side: tl.constexpr,
    pool: tl.constexpr,
    stride: tl.constexpr,
    biased: tl.constexpr,
    relu: tl.constexpr,
    relu_last: tl.constexpr,
    kind: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """out, and which pixel of its window each is from: `num_pixels` of them, (…, channels).

    maps: (batch, side, side, channels). Strides: elements from a pixel to the next. kind: NO_NORM
    or BATCH, with scale and shift of each channel. chosen: only written with pooling.
    """
    pixel = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    known = channel < channels
    added = of_channels(bias, channel, known, biased)
    factor = of_channels(scale, channel, known, kind == _BATCH)
    offset = of_channels(shift, channel, known, kind == _BATCH)
    column, row = pixel % out_side, (pixel // out_side) % out_side
    image = pixel // (out_side * out_side)
    best = tl.full((block_pixels, block_channels), float("-inf"), tl.float32)
    code = tl.zeros((block_pixels, block_channels), tl.int32)
    for down in tl.static_range(pool):
        for across in tl.static_range(pool):
            y, x = row * stride + down, column * stride + across
            inside = (pixel < num_pixels) & (y < side) & (x < side)
            there = inside[:, None] & known[None, :]
            place = ((image * side + y) * side + x)[:, None] * maps_stride + channel[None, :]
            value = activated(maps, place, added, there, relu)
            if kind == _BATCH:
                value = value * factor + offset
            best, code = greater(value, down * pool + across, there, best, code)
    best, code = rectified(best, code, relu_last)
    kept = (pixel < num_pixels)[:, None] & known[None, :]
    target = pixel[:, None] * out_stride + channel[None, :]
    store_pooled(out, chosen, target, kept, best, code, pool)


@triton.jit
def finish_backward(
    maps: "Any",
    bias: "Any",
    of_gradient: "Any",
    of_maps: "Any",
    constant: "Any",
    chosen: "Any",
    gradient: "Any",
    out: "Any",
    sums: "Any",
    num_pixels: "Any",
    maps_stride: tl.constexpr,
    out_stride: tl.constexpr,
    channels: tl.constexpr,
    side: tl.constexpr,
    out_side: tl.constexpr,
    pool: tl.constexpr,
    stride: tl.constexpr,
    biased: tl.constexpr,
    relu: tl.constexpr,
    kind: tl.constexpr,
    k: tl.constexpr,
    alpha: tl.constexpr,
    beta: tl.constexpr,
    parts: tl.constexpr,
    wide: tl.constexpr,
    summed: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """out: the gradient of `maps`, from that of what came out; sums: of it, of each program.

    With s_i = k + alpha * (sum over neighbours of a^2), h_i what arrives at the normalised map:
    h_i s_i^-beta - 2 alpha beta a_i * (sum over neighbours j of h_j a_j s_j^(-beta-1)). Of BATCH:
    h times of_gradient, plus a times of_maps, plus constant, each of them by channel.
    sums: float32 (programs, channels), where they are `summed`.
    """
    pixel = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    known = channel < channels
    there = (pixel < num_pixels)[:, None] & known[None, :]
    place = pixel[:, None] * maps_stride + channel[None, :]
    added = of_channels(bias, channel, known, biased)
    a = activated(maps, place, added, there, relu)
    h = arriving(
        gradient, chosen, pixel, channel, there, out_stride, side, out_side, pool, stride
    )
    if kind == _RESPONSE:
        s = k + alpha * spread(a * a, parts, wide)
        scaled = h * tl.exp2(-beta * tl.log2(s))
        h = scaled - 2.0 * alpha * beta * a * spread(scaled * a / s, parts, wide)
    if kind == _BATCH:
        h = h * of_channels(of_gradient, channel, known, True)
        h += a * of_channels(of_maps, channel, known, True)
        h += of_channels(constant, channel, known, True)
    if relu:
        h = tl.where(a > 0.0, h, 0.0)
    h = tl.where(there, h, 0.0)
    tl.store(out + place, h.to(out.dtype.element_ty), mask=there)
    if summed:
        target = tl.program_id(0) * channels + channel
        tl.store(sums + target, tl.sum(h, 0), mask=known)
