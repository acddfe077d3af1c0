"""Gather, crop, flip, lighting and cast of stored images as one Triton kernel.

Called by pipeline/gather.py, which has the plain forms beside it. One pass: each byte that is
shown is read once, each value written once. (Annotations of kernels are strings: Triton would
look up any other name in them.)
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX

OPTIONS: dict[str, Any] = {
    "block": 1024,  # elements, or pixels, of a program; a power of two
    "enable_fp_fusion": False,  # nothing here to fuse; told, as Triton's default will change
}


@triton.jit
def _gather_rgb(
    images: "Any",
    rows: "Any",
    crop: "Any",
    offsets: "Any",
    out: "Any",
    row_stride: "Any",
    crop_stride: "Any",
    lit: tl.constexpr,
    size: tl.constexpr,
    side: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """out: (image, side, side, 3). images: uint8 (stored, size, size, 3)."""
    per_image: tl.constexpr = side * side * 3
    programs: tl.constexpr = (per_image + block - 1) // block
    image = tl.program_id(0) // programs
    element = (tl.program_id(0) % programs) * block + tl.arange(0, block)
    valid = element < per_image
    channel = element % 3
    across = (element // 3) % side
    down = element // (3 * side)
    source = tl.load(rows + image * row_stride).to(tl.int64) * (size * size * 3)
    x = tl.load(crop + image * crop_stride).to(tl.int32)
    y = tl.load(crop + image * crop_stride + 1).to(tl.int32)
    flip = tl.load(crop + image * crop_stride + 2).to(tl.int32)
    across = x + tl.where(flip == 1, side - 1 - across, across)
    place = ((y + down) * size + across) * 3 + channel
    value = tl.load(images + source + place, mask=valid, other=0)
    if lit:
        value = value.to(tl.float32)
        value += tl.load(offsets + image * 3 + channel, mask=valid, other=0.0)
    target = image.to(tl.int64) * per_image + element
    tl.store(out + target, value.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _chroma(
    plane: "Any",
    y: "Any",
    x: "Any",
    valid: "Any",
    half: tl.constexpr,
) -> "Any":
    """A plane of half the side at a pixel of the whole, less 128; as `restored` has it."""
    near_y, near_x = y // 2, x // 2
    far_y = tl.minimum(tl.maximum(near_y + 2 * (y % 2) - 1, 0), half - 1)
    far_x = tl.minimum(tl.maximum(near_x + 2 * (x % 2) - 1, 0), half - 1)
    a = tl.load(plane + near_y * half + near_x, mask=valid, other=0).to(tl.int32)
    b = tl.load(plane + near_y * half + far_x, mask=valid, other=0).to(tl.int32)
    c = tl.load(plane + far_y * half + near_x, mask=valid, other=0).to(tl.int32)
    d = tl.load(plane + far_y * half + far_x, mask=valid, other=0).to(tl.int32)
    return ((9 * a + 3 * b + 3 * c + d + 8) >> 4) - 128


@triton.jit
def _write(
    value: "Any",
    out: "Any",
    target: "Any",
    offset: "Any",
    valid: "Any",
    lit: tl.constexpr,
) -> None:
    """A colour of pixels, 0..255 or beyond, cut off there, with its lighting."""
    value = tl.minimum(tl.maximum(value, 0), 255)
    if lit:
        value = value.to(tl.float32) + offset
    tl.store(out + target, value.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _gather_subsampled(
    images: "Any",
    rows: "Any",
    crop: "Any",
    offsets: "Any",
    out: "Any",
    row_stride: "Any",
    crop_stride: "Any",
    lit: tl.constexpr,
    size: tl.constexpr,
    side: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """As _gather_rgb, of images that pipeline/subsampled.py stored; a program takes pixels."""
    per_image: tl.constexpr = side * side
    programs: tl.constexpr = (per_image + block - 1) // block
    half: tl.constexpr = size // 2
    image = tl.program_id(0) // programs
    pixel = (tl.program_id(0) % programs) * block + tl.arange(0, block)
    valid = pixel < per_image
    across, down = pixel % side, pixel // side
    number = tl.load(rows + image * row_stride).to(tl.int64)
    luma = images + number * (size * size + 2 * half * half)
    x = tl.load(crop + image * crop_stride).to(tl.int32)
    y = tl.load(crop + image * crop_stride + 1).to(tl.int32)
    flip = tl.load(crop + image * crop_stride + 2).to(tl.int32)
    x = x + tl.where(flip == 1, side - 1 - across, across)
    y = y + down
    light = tl.load(luma + y * size + x, mask=valid, other=0).to(tl.int32)
    blue = _chroma(luma + size * size, y, x, valid, half)
    red = _chroma(luma + size * size + half * half, y, x, valid, half)
    r = light + ((91881 * red + 32768) >> 16)
    g = light + ((-22554 * blue - 46802 * red + 32768) >> 16)
    b = light + ((116130 * blue + 32768) >> 16)
    target = (image.to(tl.int64) * per_image + pixel) * 3
    r_offset, g_offset, b_offset = 0.0, 0.0, 0.0
    if lit:
        r_offset = tl.load(offsets + image * 3)
        g_offset = tl.load(offsets + image * 3 + 1)
        b_offset = tl.load(offsets + image * 3 + 2)
    _write(r, out, target, r_offset, valid, lit)
    _write(g, out, target + 1, g_offset, valid, lit)
    _write(b, out, target + 2, b_offset, valid, lit)


def gather(
    images: Tensor, rows: Tensor, crop: Tensor, offsets: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See pipeline/gather.py, gather_crop; in the current stream of the images' device."""
    n = len(rows)
    out = torch.empty((n, CROP_PX, CROP_PX, 3), dtype=dtype, device=images.device)
    if n == 0:
        return out
    assert images.is_contiguous() and crop.stride(1) == 1
    assert offsets is None or offsets.is_contiguous()
    whole = images.ndim == 4
    elements = CROP_PX * CROP_PX * (3 if whole else 1)
    kernel = _gather_rgb if whole else _gather_subsampled
    with torch.cuda.device(images.device if images.is_cuda else -1):  # Triton's is the current
        kernel[(n * triton.cdiv(elements, OPTIONS["block"]),)](
            images, rows, crop, out if offsets is None else offsets, out,
            rows.stride(0), crop.stride(0),
            lit=offsets is not None, size=SIZE_PX, side=CROP_PX, **OPTIONS,
        )  # fmt: skip
    return out


def try_out(device: torch.device) -> None:
    """Has one image gathered, and waits for it; an exception of whatever kind where that fails."""
    image = torch.full((1, SIZE_PX, SIZE_PX, 3), 7, dtype=torch.uint8, device=device)
    zeros = torch.zeros((1, 3), dtype=torch.int32, device=device)
    if int(gather(image, zeros[:, 0], zeros, None, torch.uint8).sum()) != 7 * CROP_PX**2 * 3:
        raise ValueError("a kernel computed something else than it should")
