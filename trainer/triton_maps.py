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
def greater(
    value: "Any", number: "Any", there: "Any", best: "Any", code: "Any"
) -> "tuple[Any, Any]":
    """The greater of a pixel of a window and the best so far, with its number; NaN is greatest."""
    better = there & ((value > best) | (value != value))
    return tl.where(better, value, best), tl.where(better, number, code)


@triton.jit
def rectified(best: "Any", code: "Any", relu: tl.constexpr) -> "tuple[Any, Any]":
    """The best of each window, rectified if `relu`: what that stops is from NOWHERE."""
    if relu:
        code = tl.where(best > 0.0, code, NOWHERE)
        best = tl.where(best < 0.0, 0.0, best)
    return best, code


@triton.jit
def store_pooled(
    out: "Any",
    chosen: "Any",
    target: "Any",
    kept: "Any",
    best: "Any",
    code: "Any",
    pool: tl.constexpr,
) -> None:
    """Stores the best of each window and, where there is pooling, which pixel of it that is."""
    tl.store(out + target, best.to(out.dtype.element_ty), mask=kept)
    if pool > 1:
        tl.store(chosen + target, code.to(tl.uint8), mask=kept)


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
