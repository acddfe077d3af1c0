"""Response norm over the pixels around a pixel in the same map, as Triton kernels.

Maps are channels-last; a program takes a block of pixels and of neighbouring channels. Called by
trainer/map_norm.py; its plain form is `trainer.layers.MapResponseNorm`.
(Annotations of kernels are strings: Triton would look up any other name in them.)
"""

from typing import Any

import triton
import triton.language as tl

OPTIONS: dict[str, Any] = {
    "block_pixels": 64,
    "enable_fp_fusion": True,  # a * b + c rounded once; told, as Triton's default will change
}


@triton.jit
def _around(
    maps: "Any",
    pixel: "Any",
    channel: "Any",
    known: "Any",
    channels: tl.constexpr,
    side: tl.constexpr,
    size: tl.constexpr,
    square: tl.constexpr,
) -> "Any":
    """The sum over the size x size pixels around each pixel, of squares if `square`; float32."""
    x, y = pixel % side, (pixel // side) % side
    total = tl.zeros(known.shape, tl.float32)
    for down in tl.static_range(size):
        for across in tl.static_range(size):
            v, u = y + down - size // 2, x + across - size // 2
            inside = (v >= 0) & (v < side) & (u >= 0) & (u < side)
            there = known & inside[:, None]
            place = (pixel + (v - y) * side + u - x)[:, None] * channels + channel[None, :]
            value = tl.load(maps + place, mask=there, other=0.0).to(tl.float32)
            total += value * value if square else value
    return total


@triton.jit
def normalise(
    maps: "Any",
    gradient: "Any",
    out: "Any",
    term: "Any",
    num_pixels: "Any",
    channels: tl.constexpr,
    side: tl.constexpr,
    size: tl.constexpr,
    k: tl.constexpr,
    alpha: tl.constexpr,
    beta: tl.constexpr,
    backward: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """out: maps times s^-beta, with s = k + alpha * (sum of squares around).

    If `backward`: gradient times that, and term = gradient * maps * s^(-beta-1).
    """
    pixel = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    known = (pixel < num_pixels)[:, None] & (channel < channels)[None, :]
    place = pixel[:, None] * channels + channel[None, :]
    total = k + alpha * _around(maps, pixel, channel, known, channels, side, size, True)
    factor = tl.exp2(-beta * tl.log2(total))
    a = tl.load(maps + place, mask=known, other=0.0).to(tl.float32)
    value = a * factor
    if backward:
        value = tl.load(gradient + place, mask=known, other=0.0).to(tl.float32) * factor
        tl.store(term + place, (value * a / total).to(term.dtype.element_ty), mask=known)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=known)


@triton.jit
def subtract_terms(
    maps: "Any",
    scaled: "Any",
    term: "Any",
    out: "Any",
    num_pixels: "Any",
    channels: tl.constexpr,
    side: tl.constexpr,
    size: tl.constexpr,
    alpha: tl.constexpr,
    beta: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """out: the gradient of `maps`: scaled - 2 alpha beta maps * (sum of terms around)."""
    pixel = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    known = (pixel < num_pixels)[:, None] & (channel < channels)[None, :]
    place = pixel[:, None] * channels + channel[None, :]
    total = _around(term, pixel, channel, known, channels, side, size, False)
    a = tl.load(maps + place, mask=known, other=0.0).to(tl.float32)
    value = tl.load(scaled + place, mask=known, other=0.0).to(tl.float32)
    value -= 2.0 * alpha * beta * a * total
    tl.store(out + place, value.to(out.dtype.element_ty), mask=known)
