"""What a run shows as pictures while it trains: its first kernels, and what it is shown itself."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.loader import Batch
from pipeline.waits import Waits
from trainer.loop import Feed

Pictures = NDArray[np.uint8]  # (N, height, width, 3)
GREY = 128  # of a weight that is 0
GAP_PX = 1
NUM_SAMPLES = 16
SAMPLES_PER_ROW = 4
KERNEL_SCALE = 4  # screen pixels per weight
KERNELS_PER_ROW = 16  # as in Figure 3 of the paper: 48 of a column are three rows


def kernel_pictures(weights: Tensor) -> Pictures:
    """Kernels as RGB pixels, uint8 (N, height, width, 3); weights: (N, 3, height, width).

    A kernel's largest weight, by its size, is 127 steps away from the grey of 0, so that each is
    seen as well as the others; zero stays grey in all of them.
    """
    values = weights.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    largest = np.abs(values).max((1, 2, 3), keepdims=True)
    scaled = values / np.where(largest > 0, largest, 1.0)
    return np.asarray(np.rint(GREY + 127 * scaled), np.uint8)


def sample_pictures(batch: Batch, count: int = NUM_SAMPLES) -> Pictures:
    """The first images of a batch as the network is shown them, clamped to 0..255."""
    values = batch.images[:count].detach().float().cpu().permute(0, 2, 3, 1)
    return np.asarray(values.round().clamp(0, 255).numpy(), np.uint8)


def tiled(pictures: Pictures, per_row: int, scale: int = 1, background: int = 255) -> Pictures:
    """Pictures side by side in rows, each pixel `scale` times as wide and high, one gap around.

    Returns uint8 (height, width, 3).
    """
    grown = pictures.repeat(scale, 1).repeat(scale, 2)
    count, height, width, _ = grown.shape
    per_row, gap = min(per_row, count), GAP_PX * scale
    num_rows = -(-count // per_row)
    shape = (num_rows * (height + gap) + gap, per_row * (width + gap) + gap, 3)
    sheet = np.full(shape, background, np.uint8)
    for i, picture in enumerate(grown):
        row, column = divmod(i, per_row)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


class SeenFeed:
    """A feed that also gives `see` the first batch of every epoch, or of what is left of it."""

    def __init__(self, feed: Feed, see: Callable[[Batch], None]) -> None:
        self._feed, self._see = feed, see

    @property
    def waits(self) -> Waits:
        """See Feed."""
        return self._feed.waits

    def __len__(self) -> int:
        return len(self._feed)

    def __iter__(self) -> Iterator[Batch]:
        for i, batch in enumerate(self._feed):
            if i == 0:
                self._see(batch)
            yield batch
