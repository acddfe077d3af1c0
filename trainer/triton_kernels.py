"""What follows a convolution, as one Triton kernel each way: bias, ReLU, norm, pooling.

Maps are channels-last. A program takes blocks of pixels and of neighbouring channels. The sum of
response norm over neighbouring channels is, forward, over elements loaded again, from the cache,
by a kernel of its own that takes runs of elements; backward, where it is of what was just
computed, a product with a banded matrix, on tensor cores. (Each was tried the other way round, on
an H200: forward 4 to 5 times, backward twice the time.) Sums and powers are in float32. Called by
trainer/kernels.py, which has the plain form of it beside.
(Annotations of kernels are strings: Triton would look up any other name in them.)
"""

from typing import Any

import triton
import triton.language as tl

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
_REACH: tl.constexpr = tl.constexpr(2)  # channels to each side in the sum: the paper's
_NOWHERE: tl.constexpr = tl.constexpr(255)  # a choice that no pixel of a window has


@triton.jit
def _activated(
    maps: "Any", place: "Any", bias: "Any", there: "Any", relu: tl.constexpr
) -> "Any":
    """Maps with their bias, rectified if `relu`, in float32; 0 outside. NaN stays NaN."""
    a = tl.load(maps + place, mask=there, other=0.0).to(tl.float32) + bias
    if relu:
        a = tl.where(a < 0.0, 0.0, a)
    return tl.where(there, a, 0.0)


@triton.jit
def _spread(values: "Any", parts: tl.constexpr, wide: tl.constexpr) -> "Any":
    """Each channel's sum over the channels around it; values: float32 (pixels, channels).

    As a product with a band of ones, of values cut into `parts` of eight bits each: two hold the
    square of a 16-bit float whole, or nearly, and three a float32.
    """
    channel = tl.arange(0, values.shape[1])
    apart = channel[:, None] - channel[None, :]
    near = (apart <= _REACH) & (apart >= -_REACH)
    band = near.to(tl.float32).to(tl.bfloat16)
    total = tl.zeros(values.shape, tl.float32)
    rest = values
    for _ in tl.static_range(parts):
        part = rest.to(tl.bfloat16)
        if wide:
            total = tl.dot(part.to(tl.float32), band.to(tl.float32), total)
        else:
            total = tl.dot(part, band, total)
        rest = rest - part.to(tl.float32)
    return total


@triton.jit
def _of_channels(values: "Any", channel: "Any", known: "Any", there: tl.constexpr) -> "Any":
    """A value for each channel, (1, channels); 0 where there is none."""
    if there:
        return tl.load(values + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    return tl.zeros(channel.shape, tl.float32)[None, :]


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
    added = _of_channels(bias, channel, known, biased)
    factor = _of_channels(scale, channel, known, kind == _BATCH)
    offset = _of_channels(shift, channel, known, kind == _BATCH)
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
            value = _activated(maps, place, added, there, relu)
            if kind == _BATCH:
                value = value * factor + offset
            better = there & ((value > best) | (value != value))
            best = tl.where(better, value, best)
            code = tl.where(better, down * pool + across, code)
    if relu_last:
        code = tl.where(best > 0.0, code, _NOWHERE)
        best = tl.where(best < 0.0, 0.0, best)
    kept = (pixel < num_pixels)[:, None] & known[None, :]
    target = pixel[:, None] * out_stride + channel[None, :]
    tl.store(out + target, best.to(out.dtype.element_ty), mask=kept)
    if pool > 1:
        tl.store(chosen + target, code.to(tl.uint8), mask=kept)


@triton.jit
def respond(
    maps: "Any",
    out: "Any",
    chosen: "Any",
    num_elements: "Any",
    maps_stride: tl.constexpr,
    out_stride: tl.constexpr,
    channels: tl.constexpr,
    side: tl.constexpr,
    out_side: tl.constexpr,
    pool: tl.constexpr,
    stride: tl.constexpr,
    relu_last: tl.constexpr,
    k: tl.constexpr,
    alpha: tl.constexpr,
    beta: tl.constexpr,
    block_elements: tl.constexpr,
) -> None:
    """As `finish`, of activations, with response norm over five of `channels`: a column's."""
    element = tl.program_id(0) * block_elements + tl.arange(0, block_elements)
    valid = element < num_elements
    channel, pixel = element % channels, element // channels
    column, row = pixel % out_side, (pixel // out_side) % out_side
    image = pixel // (out_side * out_side)
    best = tl.full((block_elements,), float("-inf"), tl.float32)
    code = tl.zeros((block_elements,), tl.int32)
    for down in tl.static_range(pool):
        for across in tl.static_range(pool):
            y, x = row * stride + down, column * stride + across
            there = valid & (y < side) & (x < side)
            place = ((image * side + y) * side + x) * maps_stride + channel
            value = tl.load(maps + place, mask=there, other=0.0).to(tl.float32)
            total = value * value
            for number in tl.static_range(2 * _REACH + 1):
                if number != _REACH:  # itself
                    near = channel + number - _REACH
                    inside = there & (near >= 0) & (near < channels)
                    other = tl.load(maps + place + number - _REACH, mask=inside, other=0.0)
                    total += other.to(tl.float32) * other.to(tl.float32)
            value = value * tl.exp2(-beta * tl.log2(k + alpha * total))
            better = there & ((value > best) | (value != value))
            best = tl.where(better, value, best)
            code = tl.where(better, down * pool + across, code)
    if relu_last:
        code = tl.where(best > 0.0, code, _NOWHERE)
        best = tl.where(best < 0.0, 0.0, best)
    target = pixel * out_stride + channel
    tl.store(out + target, best.to(out.dtype.element_ty), mask=valid)
    if pool > 1:
        tl.store(chosen + target, code.to(tl.uint8), mask=valid)


@triton.jit
def _arriving(
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
                code = tl.load(chosen + place, mask=seen, other=_NOWHERE).to(tl.int32)
                value = tl.where(code == (down * pool + across)[:, None], value, 0.0)
            total += value
    return total


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
    added = _of_channels(bias, channel, known, biased)
    a = _activated(maps, place, added, there, relu)
    h = _arriving(
        gradient, chosen, pixel, channel, there, out_stride, side, out_side, pool, stride
    )
    if kind == _RESPONSE:
        s = k + alpha * _spread(a * a, parts, wide)
        scaled = h * tl.exp2(-beta * tl.log2(s))
        h = scaled - 2.0 * alpha * beta * a * _spread(scaled * a / s, parts, wide)
    if kind == _BATCH:
        h = h * _of_channels(of_gradient, channel, known, True)
        h += a * _of_channels(of_maps, channel, known, True)
        h += _of_channels(constant, channel, known, True)
    if relu:
        h = tl.where(a > 0.0, h, 0.0)
    h = tl.where(there, h, 0.0)
    tl.store(out + place, h.to(out.dtype.element_ty), mask=there)
    if summed:
        target = tl.program_id(0) * channels + channel
        tl.store(sums + target, tl.sum(h, 0), mask=known)


@triton.jit
def _pixels(step: "Any", num_blocks: tl.constexpr, block_pixels: tl.constexpr) -> "Any":
    """Those of a program's block."""
    block = tl.program_id(0) * num_blocks + step
    return block * block_pixels + tl.arange(0, block_pixels)


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
    added = _of_channels(bias, channel, known, biased)
    total = tl.zeros((block_pixels, block_channels), tl.float32)
    squares = tl.zeros((block_pixels, block_channels), tl.float32)
    for step in range(num_blocks):
        pixel = _pixels(step, num_blocks, block_pixels)
        there = (pixel < num_pixels)[:, None] & known[None, :]
        place = pixel[:, None] * maps_stride + channel[None, :]
        a = _activated(maps, place, added, there, relu)
        total += a
        squares += a * a
    target = tl.program_id(0) * channels + channel
    tl.store(sums + target, tl.sum(total, 0), mask=known)
    tl.store(sums + tl.num_programs(0) * channels + target, tl.sum(squares, 0), mask=known)


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
    added = _of_channels(bias, channel, known, biased)
    total = tl.zeros((block_pixels, block_channels), tl.float32)
    products = tl.zeros((block_pixels, block_channels), tl.float32)
    for step in range(num_blocks):
        pixel = _pixels(step, num_blocks, block_pixels)
        there = (pixel < num_pixels)[:, None] & known[None, :]
        place = pixel[:, None] * maps_stride + channel[None, :]
        a = _activated(maps, place, added, there, relu)
        h = _arriving(
            gradient, chosen, pixel, channel, there, out_stride, side, out_side, pool, stride
        )
        total += h
        products += h * a
    target = tl.program_id(0) * channels + channel
    tl.store(sums + target, tl.sum(total, 0), mask=known)
    tl.store(sums + tl.num_programs(0) * channels + target, tl.sum(products, 0), mask=known)
