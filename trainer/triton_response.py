"""Response norm over neighbouring channels, in Triton.

Part of what trainer/triton_kernels.py computes. The sum is, forward, over elements loaded again,
from the cache, by a kernel of its own that takes runs of elements; backward, where it is of what
was just computed, a product with a banded matrix, on tensor cores. (Each was tried the other way
round, on an H200: forward 4 to 5 times, backward twice the time.) Its plain form is
`trainer.layers.ResponseNorm`.
(Annotations of kernels are strings: Triton would look up any other name in them.)
"""

from typing import Any

import triton
import triton.language as tl

from trainer.triton_maps import greater, rectified, store_pooled

REACH: tl.constexpr = tl.constexpr(2)  # channels to each side in the sum: the paper's


@triton.jit
def spread(values: "Any", parts: tl.constexpr, wide: tl.constexpr) -> "Any":
    """Each channel's sum over the channels around it; values: float32 (pixels, channels).

    As a product with a band of ones, of values cut into `parts` of eight bits each: two hold the
    square of a 16-bit float whole, or nearly, and three a float32.
    """
    channel = tl.arange(0, values.shape[1])
    apart = channel[:, None] - channel[None, :]
    near = (apart <= REACH) & (apart >= -REACH)
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
            for number in tl.static_range(2 * REACH + 1):
                if number != REACH:  # itself
                    near = channel + number - REACH
                    inside = there & (near >= 0) & (near < channels)
                    other = tl.load(maps + place + number - REACH, mask=inside, other=0.0)
                    total += other.to(tl.float32) * other.to(tl.float32)
            value = value * tl.exp2(-beta * tl.log2(k + alpha * total))
            best, code = greater(value, down * pool + across, there, best, code)
    best, code = rectified(best, code, relu_last)
    target = pixel * out_stride + channel
    store_pooled(out, chosen, target, valid, best, code, pool)
