"""Pixels to what the first convolution sees, as one Triton kernel: mean, cast, edge, 4x4 blocks.

Called by trainer/input.py, which has the plain form of it beside. (Annotations of kernels are
strings: Triton would look up any other name in them.)
"""

from typing import Any

import triton
import triton.language as tl

AT_CROP, CENTRE, CHANNEL = 0, 1, 2  # kinds of mean, as `trainer.layers.Normalise` has them
OPTIONS: dict[str, Any] = {
    "block": 1024,  # elements of a program
    "enable_fp_fusion": False,  # as the plain form rounds; told, as Triton's default will change
}
_AT_CROP: tl.constexpr = tl.constexpr(AT_CROP)
_CHANNEL: tl.constexpr = tl.constexpr(CHANNEL)


@triton.jit
def prepare(
    images: "Any",
    crop: "Any",
    mean: "Any",
    scale: "Any",
    out: "Any",
    divisor: "Any",
    crop_stride: "Any",
    kind: tl.constexpr,
    size: tl.constexpr,
    side: tl.constexpr,
    rows: tl.constexpr,
    block_px: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """out: (image, rows, rows, 3 block_px^2), the pixels of a block as channels, by colour first.

    images: (image, side, side, 3). mean: (size, size, 3), or (3,) of CHANNEL, which has `scale`
    (3,) too. Pixels beyond the side are 0. divisor: of the result, but for CHANNEL.
    """
    of_block: tl.constexpr = block_px * block_px
    per_image: tl.constexpr = rows * rows * 3 * of_block
    programs: tl.constexpr = (per_image + block - 1) // block
    image = tl.program_id(0) // programs
    element = (tl.program_id(0) % programs) * block + tl.arange(0, block)
    valid = element < per_image
    within, at = element % (3 * of_block), element // (3 * of_block)
    colour = within // of_block
    y = (at // rows) * block_px + (within % of_block) // block_px
    x = (at % rows) * block_px + within % block_px
    there = valid & (y < side) & (x < side)
    source = image.to(tl.int64) * (side * side * 3)
    value = tl.load(images + source + (y * side + x) * 3 + colour, mask=there, other=0)
    value = value.to(tl.float32)
    if kind == _CHANNEL:
        value -= tl.load(mean + colour)
        value *= tl.load(scale + colour)
    else:
        if kind == _AT_CROP:
            flip = tl.load(crop + image * crop_stride + 2)
            x = tl.where(flip == 1, side - 1 - x, x) + tl.load(crop + image * crop_stride)
            y += tl.load(crop + image * crop_stride + 1)
        else:
            x += (size - side) // 2
            y += (size - side) // 2
        value -= tl.load(mean + (y * size + x) * 3 + colour, mask=there, other=0.0)
        value /= divisor
    value = tl.where(there, value, 0.0)
    target = image.to(tl.int64) * per_image + element
    tl.store(out + target, value.to(out.dtype.element_ty), mask=valid)
