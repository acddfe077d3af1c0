"""What batch norm sums up of maps, in Triton: forward, and of the gradient that arrives.

The sums of programs are added up by who calls them, in float64.
(Annotations of kernels are strings: Triton would look up any other name in them.)
"""

from typing import Any

import triton
import triton.language as tl

from trainer.triton_maps import activated, arriving, of_channels


@triton.jit
def _pixels(step: "Any", num_blocks: tl.constexpr, block_pixels: tl.constexpr) -> "Any":
    """Those of a program's block."""
    block = tl.program_id(0) * num_blocks + step
    return block * block_pixels + tl.arange(0, block_pixels)


@triton.jit
def _store(
    sums: "Any", first: "Any", second: "Any", channel: "Any", known: "Any", channels: tl.constexpr
) -> None:
    """A program's two sums by channel, of values (pixels, channels)."""
    target = tl.program_id(0) * channels + channel
    tl.store(sums + target, tl.sum(first, 0), mask=known)
    tl.store(sums + tl.num_programs(0) * channels + target, tl.sum(second, 0), mask=known)


@triton.jit
def sum_up(
    maps: "Any",
    bias: "Any",
    sums: "Any",
    num_pixels: "Any",
    maps_stride: tl.constexpr,
    channels: tl.constexpr,
    biased: tl.constexpr,
    relu: tl.constexpr,
    num_blocks: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Of a program's pixels, the sums of activations and of their squares, by channel.

    sums: float32 (2, programs, channels).
    """
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    known = channel < channels
    added = of_channels(bias, channel, known, biased)
    total = tl.zeros((block_pixels, block_channels), tl.float32)
    squares = tl.zeros((block_pixels, block_channels), tl.float32)
    for step in range(num_blocks):
        pixel = _pixels(step, num_blocks, block_pixels)
        there = (pixel < num_pixels)[:, None] & known[None, :]
        place = pixel[:, None] * maps_stride + channel[None, :]
        a = activated(maps, place, added, there, relu)
        total += a
        squares += a * a
    _store(sums, total, squares, channel, known, channels)


@triton.jit
def sum_up_arriving(
    maps: "Any",
    bias: "Any",
    chosen: "Any",
    gradient: "Any",
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
    num_blocks: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """As `sum_up`, of what arrives at the normalised maps, and of that times the activation."""
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    known = channel < channels
    added = of_channels(bias, channel, known, biased)
    total = tl.zeros((block_pixels, block_channels), tl.float32)
    products = tl.zeros((block_pixels, block_channels), tl.float32)
    for step in range(num_blocks):
        pixel = _pixels(step, num_blocks, block_pixels)
        there = (pixel < num_pixels)[:, None] & known[None, :]
        place = pixel[:, None] * maps_stride + channel[None, :]
        a = activated(maps, place, added, there, relu)
        h = arriving(
            gradient, chosen, pixel, channel, there, out_stride, side, out_side, pool, stride
        )
        total += h
        products += h * a
    _store(sums, total, products, channel, known, channels)
