"""Stored images to what the network is shown: gather, crop, flip and lighting, in plain torch."""

import torch
from torch import Tensor

from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX


def gather_crop(
    images: Tensor, rows: Tensor, crop: Tensor, offsets: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The crops of N of M images, (N, 224, 224, 3), 0..255 units plus lighting, in `dtype`.

    images: uint8 (M, 256, 256, 3). rows: int64 (N,), which of them. crop: int (N, 3) = x, y, flip.
    offsets: float32 (N, 3), added to every pixel in float32 and never clamped, or None. All on one
    device, which need not be a GPU. Bit-equal to pipeline/reference.py, rounded to `dtype`.
    """
    assert images.dtype == torch.uint8 and images.shape[1:] == (SIZE_PX, SIZE_PX, 3)
    assert offsets is None or dtype.is_floating_point
    pixel = torch.arange(CROP_PX, device=images.device)
    x, y, flip = crop.long().unbind(1)
    down = y[:, None] + pixel  # (N, 224)
    across = x[:, None] + torch.where(flip[:, None] == 1, CROP_PX - 1 - pixel, pixel)  # (N, 224)
    cut = images[rows[:, None, None], down[:, :, None], across[:, None, :]]  # (N, 224, 224, 3)
    if offsets is None:
        return cut.to(dtype)
    return cut.float().add_(offsets[:, None, None, :]).to(dtype)
