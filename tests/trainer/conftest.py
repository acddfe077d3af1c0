"""Batches made of numbers instead of photographs, as a loader would deliver them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from pipeline.loader import Batch
from pipeline.waits import Waits
from trainer.layers import random_source


def make_batch(num_images: int, num_classes: int, *key: int, side_px: int = 224) -> Batch:
    """A batch that is a function of its arguments; each class has a colour, under noise."""
    source = random_source("cpu", "batch", *key)
    labels = torch.randint(num_classes, (num_images,), generator=source)
    colours = torch.rand(num_classes, 3, 1, 1, generator=random_source("cpu", "colours")) * 160
    images = torch.rand(num_images, 3, side_px, side_px, generator=source) * 95 + colours[labels]
    if side_px == 256:
        images = images.to(torch.uint8)
    crop = torch.randint(0, 33, (num_images, 3), generator=source, dtype=torch.int32)
    crop[:, 2] %= 2
    return Batch(
        images=images.contiguous(memory_format=torch.channels_last),
        labels=labels,
        ids=torch.arange(num_images),
        crop=crop,
    )


class MadeFeed:
    """A loader of made-up batches, with the position of the real one."""

    def __init__(self, num_steps: int, batch_size: int = 4, num_classes: int = 3) -> None:
        self.num_steps, self.batch_size, self.num_classes = num_steps, batch_size, num_classes
        self.epoch, self.step = 0, 0
        self.waits = Waits()

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[Batch]:
        while self.step < self.num_steps:
            batch = make_batch(self.batch_size, self.num_classes, self.epoch, self.step)
            self.step += 1
            self.waits = replace(
                self.waits, decode_wait_seconds=self.waits.decode_wait_seconds + 0.5
            )
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch."""
        return {"epoch": self.epoch, "step": self.step}
