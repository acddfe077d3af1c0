"""This project's loader as a contestant."""

from collections.abc import Iterator

import torch

from pipeline.loader import Loader, LoaderConfig
from tools.measure.feed import FeedSettings


class OurFeed:
    """An epoch of the loader per pass, opened once; a pass ends with its pipeline empty."""

    def __init__(self, backend: str, settings: FeedSettings) -> None:
        self._loader = Loader(
            LoaderConfig(
                shards=settings.shards,
                batch_size=settings.batch_size,
                seed=settings.seed,
                backend=backend,
                threads=settings.num_threads,
                device="cuda" if backend == "dali-gpu" else "cpu",
            )
        )

    def batches(self) -> Iterator[torch.Tensor]:
        """The images of one epoch."""
        for batch in self._loader:
            yield batch.images

    def close(self) -> None:
        """Ends the loader's threads."""
        self._loader.close()


def open_feed(name: str, settings: FeedSettings) -> OurFeed:
    """The loader with the backend `name`."""
    return OurFeed(name, settings)
