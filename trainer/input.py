"""What the first convolution sees of a batch: the mean taken off, the edge, blocks if it asks so.

On a GPU one Triton kernel, straight into the memory of a captured step; beside it the plain form.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX
from pipeline.triton_here import triton_works
from trainer.forms import BLOCK_PX, blocks_of
from trainer.layers import Normalise

PAD_PX = 3  # right and bottom only: 224 -> 227, so that conv1 gives 55x55 maps (2012 convdata.py)
PIXEL_TYPES = (torch.float16, torch.float32, torch.uint8)


def prepared(
    normalise: Normalise,
    images: Tensor,
    crop: Tensor,
    divisor: float = 1.0,
    *,
    blocks: bool,
    out: Tensor | None = None,
) -> Tensor:
    """The input of conv1, channels-last: (batch, 3, 227, 227), or `blocks_of` it.

    images: (batch, 3, 224, 224), 0..255; crop: (batch, 3) = x, y, flip; divisor: as in
    `Normalise`. In the type of autocast, where it is on, which the convolution rounds to anyway.
    out: memory to write to and return, as an earlier call gave it.
    """
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
