"""What the first convolution sees of a batch: the mean taken off, the edge, blocks if it asks so.

On a GPU one Triton kernel, straight into the memory of a captured step; on a CPU image by image,
each in the cache until it is done; beside both the plain form.
"""

from collections.abc import Iterator
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.draws import CROP_PX
from pipeline.handover import lit
from pipeline.images import SIZE_PX
from pipeline.triton_here import triton_works
from trainer.forms import BLOCK_PX, blocks_of
from trainer.layers import Normalise, mean_windows, window_places

PAD_PX = 3  # right and bottom only: 224 -> 227, so that conv1 gives 55x55 maps (2012 convdata.py)
ROW = 3 * CROP_PX  # values of a row of pixels, channels last
PIXEL_TYPES = (torch.float16, torch.float32, torch.uint8)


def prepared(
    normalise: Normalise,
    images: Tensor,
    crop: Tensor,
    divisor: float = 1.0,
    *,
    blocks: bool,
    lighting: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The input of conv1, channels-last: (batch, 3, 227, 227), or `blocks_of` it.

    images: (batch, 3, 224, 224), 0..255; crop: (batch, 3) = x, y, flip; divisor: as in
    `Normalise`; lighting: float32 (batch, 3), of images that are without theirs. In the type of
    autocast, where it is on, which the convolution rounds to anyway. out: memory to write to and
    return, as an earlier call gave it.
    """
    if not blocks and _goes_by_image(normalise, images, out):
        return _prepared_by_image(normalise, images, crop, divisor, lighting=lighting, out=out)
    if lighting is not None:
        images = lit(images, lighting)
    if _is_fused(images):
        return _prepared_by_kernel(normalise, images, crop, divisor, blocks=blocks, out=out)
    x = F.pad(normalise(images, crop, divisor), (0, PAD_PX, 0, PAD_PX))
    x = (blocks_of(x) if blocks else x).to(_input_type(x))
    return x.contiguous(memory_format=torch.channels_last) if out is None else out.copy_(x)


def _is_fused(images: Tensor) -> bool:
    return triton_works(images.device) and fits(images)


def fits(images: Tensor) -> bool:
    """Whether the kernel takes such images: pixels side by side, of a type it knows."""
    return images.dtype in PIXEL_TYPES and images.is_contiguous(memory_format=torch.channels_last)


def _input_type(x: Tensor) -> torch.dtype:
    """That of autocast, where it is on; x's own otherwise, at least float32."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(x.dtype, torch.float32)


def _goes_by_image(normalise: Normalise, images: Tensor, out: Tensor | None) -> bool:
    """Whether all is float32 in the memory of a CPU, so that steps in place round as apart."""
    wanted = _input_type(normalise.mean) if out is None else out.dtype
    single = wanted == normalise.mean.dtype == torch.float32
    return single and images.device.type == "cpu" and fits(images)


def _prepared_by_image(
    normalise: Normalise,
    images: Tensor,
    crop: Tensor,
    divisor: float,
    *,
    lighting: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """The plain form's bits in a third of its time: main memory is read and written once."""
    num_images, side = len(images), CROP_PX + PAD_PX
    if out is None:
        shape = (num_images, 3, side, side)
        out = torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)
    # (batch, row, column and channel): long runs, and nothing is copied
    rows = out.permute(0, 2, 3, 1).view(num_images, side, 3 * side)
    rows[:, CROP_PX:] = 0
    rows[:, :CROP_PX, ROW:] = 0
    scale = (1 / (normalise.std * divisor)).repeat(CROP_PX)
    lights = repeat(None) if lighting is None else lighting.repeat(1, CROP_PX)
    pixels = images.permute(0, 2, 3, 1).view(num_images, CROP_PX, ROW)
    means, places = _means(normalise, crop), rows[:, :CROP_PX, :ROW]
    for image, light, mean, into in zip(pixels, lights, means, places, strict=False):
        if light is None:
            torch.sub(image, mean, out=into)
        else:
            into.copy_(image).add_(light).sub_(mean)
        if normalise.kind == "channel":
            into.mul_(scale)
        elif divisor != 1.0:
            into.div_(divisor)
    return out


def _means(normalise: Normalise, crop: Tensor) -> Iterator[Tensor]:
    """What is taken off each image, as rows: (224, 672), or (672,) where all are alike."""
    if normalise.kind == "channel":
        yield from repeat(normalise.mean.repeat(CROP_PX), len(crop))
    elif normalise.kind == "image-centre":
        yield from repeat(normalise.centre().view(CROP_PX, ROW), len(crop))
    else:
        windows = mean_windows(normalise.mean)
        for place in zip(*(axis.tolist() for axis in window_places(crop)), strict=True):
            yield windows[place].view(CROP_PX, ROW)


def _prepared_by_kernel(
    normalise: Normalise,
    images: Tensor,
    crop: Tensor,
    divisor: float,
    *,
    blocks: bool,
    out: Tensor | None,
) -> Tensor:
    from trainer import triton_input  # Triton only where it is used

    block_px = BLOCK_PX if blocks else 1
    rows = -(-(CROP_PX + PAD_PX) // block_px)
    if out is None:
        out = torch.empty(
            (len(images), 3 * block_px**2, rows, rows), dtype=_input_type(normalise.mean),
            device=images.device, memory_format=torch.channels_last,
        )  # fmt: skip
    kind = {
        "image-at-crop": triton_input.AT_CROP,
        "image-centre": triton_input.CENTRE,
        "channel": triton_input.CHANNEL,
    }[normalise.kind]
    scale = 1 / (normalise.std * divisor)
    programs = len(images) * -(-out[0].numel() // triton_input.OPTIONS["block"])
    with torch.cuda.device(images.device if images.is_cuda else -1):  # Triton's is the current
        triton_input.prepare[(programs,)](
            images, crop, normalise.mean, scale, out, float(divisor), crop.stride(0),
            kind=kind, size=SIZE_PX, side=CROP_PX, rows=rows, block_px=block_px,
            **triton_input.OPTIONS,
        )  # fmt: skip
    return out
