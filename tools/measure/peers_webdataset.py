"""webdataset with Pillow, as its documentation recommends: shards resampled, batches in workers.

`WebDataset` with resampled shards and a shuffle buffer before decoding, batches made in the
workers, `WebLoader` without batching of its own, an epoch set by `with_epoch`. What is done to an
image is the same code as for torch's DataLoader; webdataset's own decode("pil") copies each image
more than once. It differs from the others in that its order draws shards with replacement, so a
pass is no exact epoch, and that a pass is cut to a multiple of the number of workers.
"""

from collections.abc import Iterator

import torch
import webdataset

from pipeline.manifest import open_dataset
from tools.measure.feed import FeedSettings, lighting_matrix, num_batches
from tools.measure.peers_torch import draw_crop, draw_offset, render

SHUFFLE_BUFFER = 100  # the least of its own examples: every pass reads as many more than it uses


class Augment:
    """Encoded image and label to float32 (3, 224, 224), cropped, flipped and lit, and label."""

    def __init__(self, settings: FeedSettings) -> None:
        self._matrix = torch.from_numpy(lighting_matrix(settings.shards)).float()

    def __call__(self, sample: tuple[bytes, bytes]) -> tuple[torch.Tensor, int]:
        data, label = sample
        return render(data, draw_crop(), draw_offset(self._matrix)), int(label)


class WebdatasetFeed:
    """A pass is an epoch of a WebLoader."""

    def __init__(self, settings: FeedSettings) -> None:
        names = [shard.name for shard in open_dataset(settings.shards).split("train").shards]
        per_worker = max(1, num_batches(settings) // settings.num_threads)
        stream = (
            webdataset.WebDataset(
                [str(settings.shards / name) for name in names],
                resampled=True,
                shardshuffle=False,  # resampling draws shards at random by itself
                seed=settings.seed,
            )
            .shuffle(SHUFFLE_BUFFER)
            .to_tuple("jpg", "cls")
            .map(Augment(settings))
            .batched(settings.batch_size, partial=False)
            .with_epoch(per_worker)
        )
        self._loader = webdataset.WebLoader(
            stream,
            batch_size=None,
            num_workers=settings.num_threads,
            persistent_workers=True,
        )

    def batches(self) -> Iterator[torch.Tensor]:
        """An epoch; the workers stop when its last batch is done."""
        for images, _ in self._loader:
            yield images

    def close(self) -> None:
        """Ends the worker processes."""
        del self._loader


def open_feed(name: str, settings: FeedSettings) -> WebdatasetFeed:
    """webdataset's loader."""
    return WebdatasetFeed(settings)
