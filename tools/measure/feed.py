"""What every contestant delivers, so that all do the same work."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics

if TYPE_CHECKING:  # seconds to import, in every process that a measurement starts
    import torch


@dataclass(frozen=True, kw_only=True)
class FeedSettings:
    """What all contestants are told.

    shards: the folder all read. batch_size: images. num_threads: threads of rendering, or worker
    processes, beside the thread that takes the batches. seed: of the order and the draws.
    scratch: an empty folder of one contestant's own, for what it cannot read from the shards.
    cold: whether files are dropped from the page cache before each pass.
    """

    shards: Path
    batch_size: int
    num_threads: int
    seed: int
    scratch: Path
    cold: bool = False


class Feed(Protocol):
    """A contestant, opened.

    The work: stored 256-px images of split train, in an order that differs in every pass, of each
    a random 224-px crop, flipped with probability 1/2, plus the lighting offset, drawn per image.
    Nobody subtracts the mean: here the model owns it.
    """

    def batches(self) -> "Iterator[torch.Tensor]":
        """One pass: whole batches (N, 3, 224, 224), any memory layout, 0..255 units plus lighting.

        float32, or float16 on a GPU. When the last batch was taken, nothing goes on by itself.
        """

    def close(self) -> None:
        """Ends what was started."""


def num_batches(settings: FeedSettings) -> int:
    """Whole batches in the split."""
    return open_dataset(settings.shards).num_samples("train") // settings.batch_size


def lighting_matrix(shards: Path) -> NDArray[np.float64]:
    """(3, 3) whose product with alpha ~ N(0, 0.1**2), (3,), is an image's offset in R, G, B.

    The eigenvectors, as columns, times sqrt(lambda), as the code of 2012 has it.
    """
    found = read_statistics(shards, open_dataset(shards).fingerprint("train"))
    return found.eigenvectors * np.sqrt(found.eigenvalues)
