"""torch's DataLoader with torchvision, as its documentation recommends: tensors from the start.

torchvision.io.decode_jpeg gives a uint8 tensor, v2's functional transforms crop and flip it as it
is, and only then it becomes float32. Dataset, draws and DataLoader are those of the peer `torch`.
It decodes with libjpeg-turbo as the others do.
"""

import torch
import torchvision.transforms.v2.functional as transforms
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.draws import CROP_PX
from tools.measure.feed import FeedSettings
from tools.measure.peers_torch import TorchFeed


def render(data: bytes, crop: tuple[int, int, int], offset: torch.Tensor) -> torch.Tensor:
    """float32 (3, 224, 224) of an encoded 256-px image; crop: x, y, flip; offset: (3,)."""
    x, y, flip = crop
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels = decode_jpeg(encoded, mode=ImageReadMode.RGB)  # pixels: (channel, y, x)
    view = transforms.crop(pixels, y, x, CROP_PX, CROP_PX)
    if flip:
        view = transforms.horizontal_flip(view)
    lit: torch.Tensor = view.float().add_(offset[:, None, None])
    return lit


def open_feed(name: str, settings: FeedSettings) -> TorchFeed:
    """torch's DataLoader."""
    return TorchFeed(settings, render)
