"""Stored images to what the network is shown: gather, crop, flip, lighting and cast.

One Triton kernel on a GPU; beside it the plain form in torch, for any device, and its oracle's.
"""

import torch
from torch import Tensor

from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX
from pipeline.subsampled import HALF_PX, SUBSAMPLED_BYTES
from pipeline.triton_here import triton_works


def gather_crop(
    images: Tensor, rows: Tensor, crop: Tensor, offsets: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The crops of N of M images, (N, 224, 224, 3), 0..255 units plus lighting, in `dtype`.

    images: uint8 (M, 256, 256, 3), or as pipeline/subsampled.py has them, (M, bytes). rows: int64
    (N,), which of them. crop: int (N, 3) = x, y, flip. offsets: float32 (N, 3), added to every
    pixel in float32 and never clamped, or None. All on one device, which need not be a GPU.
    Bit-equal to pipeline/reference.py, rounded to `dtype`, whether fused or not.
    """
    assert images.dtype == torch.uint8
    assert images.shape[1:] in ((SIZE_PX, SIZE_PX, 3), (SUBSAMPLED_BYTES,))
    assert offsets is None or dtype.is_floating_point
    if triton_works(images.device):
        from pipeline.triton_gather import gather  # Triton only where it is used

        return gather(images, rows, crop, offsets, dtype)
    return gather_plain(images, rows, crop, offsets, dtype)


def gather_plain(
    images: Tensor, rows: Tensor, crop: Tensor, offsets: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`gather_crop` in torch's own operations."""
    if images.ndim == 2:
        images, rows = gather_whole(images, rows), torch.arange(len(rows), device=rows.device)
    pixel = torch.arange(CROP_PX, device=images.device)
    x, y, flip = crop.long().unbind(1)
    down = y[:, None] + pixel  # (N, 224)
    across = x[:, None] + torch.where(flip[:, None] == 1, CROP_PX - 1 - pixel, pixel)  # (N, 224)
    cut = images[rows[:, None, None], down[:, :, None], across[:, None, :]]  # (N, 224, 224, 3)
    if offsets is None:
        return cut.to(dtype)
    return cut.float().add_(offsets[:, None, None, :]).to(dtype)


def gather_whole(images: Tensor, rows: Tensor) -> Tensor:
    """N of M images as they are, uint8 (N, 256, 256, 3); images, rows: as in `gather_crop`."""
    chosen = images[rows]
    return chosen if images.ndim == 4 else _restored(chosen)


def _restored(stored: Tensor) -> Tensor:
    """pipeline/subsampled.py, `restored`, on a device: (N, bytes) to (N, 256, 256, 3)."""
    wide = stored.int()
    light = wide[:, : SIZE_PX * SIZE_PX].view(-1, SIZE_PX, SIZE_PX)
    halves = wide[:, SIZE_PX * SIZE_PX :].view(-1, 2, HALF_PX, HALF_PX)
    pixel = torch.arange(SIZE_PX, device=stored.device)
    near = pixel // 2
    far = (near + 2 * (pixel % 2) - 1).clamp(0, HALF_PX - 1)
    down = 3 * halves[:, :, near] + halves[:, :, far]  # (N, 2, 256, 128)
    blue, red = ((3 * down[..., near] + down[..., far] + 8 >> 4) - 128).unbind(1)
    colours = (
        light + (91881 * red + 32768 >> 16),
        light + (-22554 * blue - 46802 * red + 32768 >> 16),
        light + (116130 * blue + 32768 >> 16),
    )
    return torch.stack(colours, -1).clamp_(0, 255).to(torch.uint8)
