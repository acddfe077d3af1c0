"""Response norm over five channels with pooling, as one Triton kernel each way.

Maps are channels-last, so neighbouring channels are neighbours in memory, and a program takes a
run of elements, whatever their pixels: what it needs of neighbours comes from the cache. Sums and
powers are in float32. Called by trainer/kernels.py, which has the plain form of it beside.
(Annotations of kernels are strings: Triton would look up any other name in them.)
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS: dict[str, Any] = {
    "block": 256,  # elements of a program
    "enable_fp_fusion": True,  # a * b + c rounded once; told, as Triton's default will change
}


@triton.jit
def _activation(
    maps: "Any",
    place: "Any",
    channel: "Any",
    shift: tl.constexpr,
    valid: "Any",
    width: tl.constexpr,
    relu: tl.constexpr,
) -> "Any":
    """The activation `shift` channels on, in float32; 0 outside its column of `width`."""
    inside = valid & (channel + shift >= 0) & (channel + shift < width)
    a = tl.load(maps + place + shift, mask=inside, other=0.0).to(tl.float32)
    if relu:
        a = tl.maximum(a, 0.0)
    return a


@triton.jit
def _norm_pool(
    maps: "Any",
    out: "Any",
    chosen: "Any",
    num_elements: "Any",
    k: tl.constexpr,
    alpha: tl.constexpr,
    beta: tl.constexpr,
    channels: tl.constexpr,
    width: tl.constexpr,
    side: tl.constexpr,
    out_side: tl.constexpr,
    pool: tl.constexpr,
    stride: tl.constexpr,
    relu: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """out, and which pixel of its window each is from: both (batch, out side, out side, channel).

    maps: (batch, side, side, channel). width: channels of a column.
    """
    element = tl.program_id(0) * block + tl.arange(0, block)
    valid = element < num_elements
    channel = element % width
    pixel = element // channels
    column = pixel % out_side
    row = (pixel // out_side) % out_side
    image = pixel // (out_side * out_side)
    best = tl.full((block,), float("-inf"), tl.float32)
    best_code = tl.zeros((block,), tl.int32)
    for down in tl.static_range(pool):
        for across in tl.static_range(pool):
            y, x = row * stride + down, column * stride + across
            there = valid & (y < side) & (x < side)
            place = ((image * side + y) * side + x) * channels + element % channels
            a = _activation(maps, place, channel, 0, there, width, relu)
            total = a * a
            for step in tl.static_range(1, 3):  # two channels to each side
                before = _activation(maps, place, channel, -step, there, width, relu)
                after = _activation(maps, place, channel, step, there, width, relu)
                total += before * before + after * after
            value = a * tl.exp2(-beta * tl.log2(k + alpha * total))
            # Rounded before it is compared: as the plain form, which keeps the first of equals.
            value = value.to(out.dtype.element_ty).to(tl.float32)
            better = there & ((value > best) | (value != value))
            best = tl.where(better, value, best)
            best_code = tl.where(better, down * pool + across, best_code)
    tl.store(out + element, best.to(out.dtype.element_ty), mask=valid)
    if pool > 1:
        tl.store(chosen + element, best_code.to(tl.uint8), mask=valid)


@triton.jit
def _arriving(
    gradient: "Any",
    chosen: "Any",
    image: "Any",
    y: "Any",
    x: "Any",
    map_channel: "Any",
    channel: "Any",
    shift: tl.constexpr,
    valid: "Any",
    channels: tl.constexpr,
    width: tl.constexpr,
    out_side: tl.constexpr,
    pool: tl.constexpr,
    stride: tl.constexpr,
) -> "Any":
    """The gradient of the normalised map `shift` channels on: of all windows that chose it."""
    inside = valid & (channel + shift >= 0) & (channel + shift < width)
    total = tl.zeros_like(channel).to(tl.float32)
    for up in tl.static_range((pool + stride - 1) // stride):
        for left in tl.static_range((pool + stride - 1) // stride):
            row, column = y // stride - up, x // stride - left
            down, across = y - row * stride, x - column * stride
            seen = inside & (row >= 0) & (row < out_side) & (column >= 0) & (column < out_side)
            seen = seen & (down < pool) & (across < pool)
            place = ((image * out_side + row) * out_side + column) * channels
            place = place + map_channel + shift
            if pool > 1:
                code = tl.load(chosen + place, mask=seen, other=255).to(tl.int32)
                seen = seen & (code == down * pool + across)
            total += tl.load(gradient + place, mask=seen, other=0.0).to(tl.float32)
    return total


@triton.jit
def _norm_pool_backward(
    maps: "Any",
    chosen: "Any",
    gradient: "Any",
    out: "Any",
    num_elements: "Any",
    k: tl.constexpr,
    alpha: tl.constexpr,
    beta: tl.constexpr,
    channels: tl.constexpr,
    width: tl.constexpr,
    side: tl.constexpr,
    out_side: tl.constexpr,
    pool: tl.constexpr,
    stride: tl.constexpr,
    relu: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """out: the gradient of `maps`, from that of what `_norm_pool` gave.

    With s_i = k + alpha * (sum over neighbours of a^2), h_i what arrives at the normalised map:
    h_i s_i^-beta - 2 alpha beta a_i * (sum over neighbours j of h_j a_j s_j^(-beta-1)).
    """
    element = tl.program_id(0) * block + tl.arange(0, block)
    valid = element < num_elements
    channel, map_channel = element % width, element % channels
    pixel = element // channels
    x = pixel % side
    y = (pixel // side) % side
    image = pixel // (side * side)
    # Squares of the nine channels around: q0 is that of the channel four before.
    a0 = _activation(maps, element, channel, -4, valid, width, relu)
    a1 = _activation(maps, element, channel, -3, valid, width, relu)
    a2 = _activation(maps, element, channel, -2, valid, width, relu)
    a3 = _activation(maps, element, channel, -1, valid, width, relu)
    a4 = _activation(maps, element, channel, 0, valid, width, relu)
    a5 = _activation(maps, element, channel, 1, valid, width, relu)
    a6 = _activation(maps, element, channel, 2, valid, width, relu)
    a7 = _activation(maps, element, channel, 3, valid, width, relu)
    a8 = _activation(maps, element, channel, 4, valid, width, relu)
    q1, q2, q3, q4, q5, q6, q7 = a1 * a1, a2 * a2, a3 * a3, a4 * a4, a5 * a5, a6 * a6, a7 * a7
    s2 = tl.log2(k + alpha * (a0 * a0 + q1 + q2 + q3 + q4))
    s3 = tl.log2(k + alpha * (q1 + q2 + q3 + q4 + q5))
    s4 = tl.log2(k + alpha * (q2 + q3 + q4 + q5 + q6))
    s5 = tl.log2(k + alpha * (q3 + q4 + q5 + q6 + q7))
    s6 = tl.log2(k + alpha * (q4 + q5 + q6 + q7 + a8 * a8))
    h2 = _arriving(gradient, chosen, image, y, x, map_channel, channel, -2, valid,
                   channels, width, out_side, pool, stride)  # fmt: skip
    h3 = _arriving(gradient, chosen, image, y, x, map_channel, channel, -1, valid,
                   channels, width, out_side, pool, stride)  # fmt: skip
    h4 = _arriving(gradient, chosen, image, y, x, map_channel, channel, 0, valid,
                   channels, width, out_side, pool, stride)  # fmt: skip
    h5 = _arriving(gradient, chosen, image, y, x, map_channel, channel, 1, valid,
                   channels, width, out_side, pool, stride)  # fmt: skip
    h6 = _arriving(gradient, chosen, image, y, x, map_channel, channel, 2, valid,
                   channels, width, out_side, pool, stride)  # fmt: skip
    power = -beta - 1.0
    total = h2 * a2 * tl.exp2(power * s2) + h3 * a3 * tl.exp2(power * s3)
    total += h4 * a4 * tl.exp2(power * s4) + h5 * a5 * tl.exp2(power * s5)
    total += h6 * a6 * tl.exp2(power * s6)
    value = h4 * tl.exp2(-beta * s4) - 2.0 * alpha * beta * a4 * total
    if relu:
        value = tl.where(a4 > 0.0, value, 0.0)
    tl.store(out + element, value.to(out.dtype.element_ty), mask=valid)


def norm_pool(maps: Tensor, constants: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What comes out, channels-last, and the choices of its windows, uint8; empty without any.

    maps: (batch, channels, side, side), channels-last. constants: those of the kernels, by name.
    """
    side = constants["out_side"]
    shape = (len(maps), maps.shape[1], side, side)
    out = torch.empty(shape, dtype=maps.dtype, device=maps.device).contiguous(
        memory_format=torch.channels_last
    )
    num_choices = out.numel() if constants["pool"] > 1 else 0
    chosen = torch.empty(num_choices, dtype=torch.uint8, device=maps.device)
    if out.numel():
        _norm_pool[_grid(out)](maps, out, chosen, out.numel(), **constants, **OPTIONS)
    return out, chosen


def norm_pool_backward(
    maps: Tensor, chosen: Tensor, gradient: Tensor, constants: dict[str, Any]
) -> Tensor:
    """The gradient of `maps`; gradient: of what came out, channels-last."""
    out = torch.empty_like(maps)
    if out.numel():
        _norm_pool_backward[_grid(out)](
            maps, chosen, gradient, out, out.numel(), **constants, **OPTIONS
        )
    return out


def _grid(out: Tensor) -> tuple[int]:
    return (triton.cdiv(out.numel(), OPTIONS["block"]),)
