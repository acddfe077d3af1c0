"""A few training images again and again: a network that cannot learn them by heart is broken."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import torch

from pipeline.loader import Batch, Loader
from pipeline.waits import Waits


class OverfitFeed:
    """The first images of the training split, as stored and cropped to the centre, for ever.

    Stands in for a training Loader: the images are a training split of their own, kept in memory
    (0.6 MB each on a CPU, 0.3 MB on a GPU). Step k of the run takes the next `batch_size` of them,
    going round, so each comes up equally often; nothing is shuffled, shifted, mirrored or lit.
    "First" is in the order of the shards, where the classes are mixed.
    """

    def __init__(self, loader: Loader, num_images: int) -> None:
        """loader: of the training split, in index order; it is read here and then closed."""
        assert loader.config.split == "train" and not loader.config.training
        self.dataset = loader.dataset
        self.backend, self.description = loader.backend, loader.description
        self.waits = Waits()
        self._batch_size = loader.config.batch_size
        self._images = _first_images(loader, num_images)
        self._epoch, self._step = 0, 0

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self._images.labels) // self._batch_size

    def set_epoch(self, epoch: int) -> None:
        """Moves to the beginning of `epoch`, unless it is in it already."""
        if epoch != self._epoch:
            self._epoch, self._step = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        """The remaining batches of this epoch."""
        while self._step < len(self):
            started = time.perf_counter()
            first = (self._epoch * len(self) + self._step) * self._batch_size
            rows = torch.arange(first, first + self._batch_size) % len(self._images.labels)
            batch = _take(self._images, rows)
            seconds = self.waits.handover_wait_seconds + time.perf_counter() - started
            self.waits = replace(self.waits, handover_wait_seconds=seconds)
            self._step += 1
            yield batch
        self._epoch, self._step = self._epoch + 1, 0

    def whole(self) -> list[Batch]:
        """Every image once, in batches: what is learnt by heart is asked of these."""
        num_images = len(self._images.labels)
        firsts = range(0, num_images, self._batch_size)
        lasts = (min(first + self._batch_size, num_images) for first in firsts)
        return [
            _take(self._images, torch.arange(first, last))
            for first, last in zip(firsts, lasts, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch, and of how many images."""
        return {"overfit": len(self._images.labels), "epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; ValueError for that of an ordinary run."""
        expected = len(self._images.labels)
        if state.get("overfit") != expected:
            raise ValueError(
                f"cannot resume: the checkpoint was not made by --overfit {expected}; choose "
                f"another --out"
            )
        self._epoch, self._step = state["epoch"], state["step"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close: the loader was closed when the images had been read."""


def _first_images(loader: Loader, num_images: int) -> Batch:
    parts: list[Batch] = []
    with loader:
        for batch in loader:
            parts.append(_take(batch, torch.arange(len(batch.labels))))  # the loader's is its own
            if sum(len(part.labels) for part in parts) >= num_images:
                break
    whole = Batch(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        ids=torch.cat([part.ids for part in parts]),
        crop=torch.cat([part.crop for part in parts]),
    )
    return _take(whole, torch.arange(num_images))


def _take(images: Batch, rows: torch.Tensor) -> Batch:
    """A copy of those rows, in channels-last memory; rows: int64 on the CPU."""
    there = rows.to(images.labels.device)
    return Batch(
        images=images.images[there].contiguous(memory_format=torch.channels_last),
        labels=images.labels[there],
        ids=images.ids[rows],
        crop=images.crop[there],
    )


def require_images(num_images: int, available: int) -> None:
    """ValueError where the training split has fewer images than asked for."""
    if num_images > available:
        raise ValueError(
            f"--overfit is {num_images}, the training split has {available} images; use at most "
            f"that many"
        )
