"""How Triton kernels read maps: with bias and ReLU, by channel, through the windows of a pooling.

Maps are channels-last; a program takes blocks of pixels and of neighbouring channels.
(Annotations of kernels are strings: Triton would look up any other name in them.)
"""

from typing import Any

import triton
import triton.language as tl

NOWHERE: tl.constexpr = tl.constexpr(255)  # a choice that no pixel of a window has


@triton.jit
def activated(
    maps: "Any", place: "Any", bias: "Any", there: "Any", relu: tl.constexpr
) -> "Any":
    """Maps with their bias, rectified if `relu`, in float32; 0 outside. NaN stays NaN."""
    a = tl.load(maps + place, mask=there, other=0.0).to(tl.float32) + bias
    if relu:
        a = tl.where(a < 0.0, 0.0, a)
    return tl.where(there, a, 0.0)


@triton.jit
def of_channels(values: "Any", channel: "Any", known: "Any", there: tl.constexpr) -> "Any":
    """A value for each channel, (1, channels); 0 where there is none."""
    if there:
        return tl.load(values + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    return tl.zeros(channel.shape, tl.float32)[None, :]


@triton.jit
def arriving(
    gradient: "Any",
    chosen: "Any",
    pixel: "Any",
    channel: "Any",
    there: "Any",
    out_stride: tl.constexpr,
    side: tl.constexpr,
    out_side: tl.constexpr,
    pool: tl.constexpr,
    stride: tl.constexpr,
) -> "Any":
    """The gradient of the maps before pooling: of all windows that chose a pixel."""
    x, y, image = pixel % side, (pixel // side) % side, pixel // (side * side)
    total = tl.zeros(there.shape, tl.float32)
    for up in tl.static_range((pool + stride - 1) // stride):
        for left in tl.static_range((pool + stride - 1) // stride):
            row, column = y // stride - up, x // stride - left
            down, across = y - row * stride, x - column * stride
            seen = (row >= 0) & (row < out_side) & (column >= 0) & (column < out_side)
            seen = there & (seen & (down < pool) & (across < pool))[:, None]
            place = ((image * out_side + row) * out_side + column)[:, None] * out_stride
            place = place + channel[None, :]
            value = tl.load(gradient + place, mask=seen, other=0.0).to(tl.float32)
            if pool > 1:  # compared after it is loaded: neighbours are loaded together
                code = tl.load(chosen + place, mask=seen, other=NOWHERE).to(tl.int32)
                value = tl.where(code == (down * pool + across)[:, None], value, 0.0)
            total += value
    return total
