"""Train one epoch; validate."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.loader import Batch
from pipeline.waits import Waits
from trainer.metrics import Progress
from trainer.model import AlexNet
from trainer.optimizer import build_optimizer, set_learning_rates
from trainer.preset import Preset
from trainer.schedule import build_schedule


class Feed(Protocol):
    """What the trainer needs of a loader; `pipeline.loader.Loader` has more."""

    @property
    def waits(self) -> Waits:
        """How long its consumer waited so far."""

    def __len__(self) -> int:
        """Steps per epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """The remaining steps of the current epoch."""


@dataclass(kw_only=True)
class Totals(Waits):
    """What an epoch has summed up so far; part of a checkpoint taken in its middle."""

    loss_sum: float = 0.0  # over images
    num_images: int = 0
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return self.loss_sum / max(1, self.num_images)

    @property
    def images_per_second(self) -> float:
        """Training speed."""
        return self.num_images / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time in which the trainer waited for data, 0..1."""
        return self.data_wait_seconds / self.seconds if self.seconds else 0.0


class Trainer:
    """A network in training: its optimiser, its schedule and how many steps it has made.

    The loss stays on the device; it is read only when a report is due and at the end of an epoch.
    """

    def __init__(
        self, *, model: AlexNet, preset: Preset, steps_per_epoch: int, seed: int, precision: str
    ) -> None:
        self.model, self.preset, self.seed, self.precision = model, preset, seed, precision
        self.optimizer = build_optimizer(model, preset)
        self.schedule = build_schedule(preset, steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self._unread: list[Tensor] = []  # losses of the last steps, scalars on the device

    def train_epoch(
        self, feed: Feed, totals: Totals, progress: Progress, stop: Callable[[], bool]
    ) -> bool:
        """Trains on the remaining steps of the feed's epoch, adding to `totals`.

        Returns False where `stop` said so before the end: between two steps, with everything in
        place for a checkpoint. FloatingPointError, naming the step, where the loss is not finite.
        """
        self.model.train()
        before, start = Totals(**vars(totals)), time.perf_counter()
        waited = feed.waits
        steps_done = self.step % len(feed)
        for batch in feed:
            self._unread.append(self.train_step(batch))
            totals.num_images += len(batch.labels)
            steps_done += 1
            stopped = steps_done < len(feed) and stop()
            if stopped or steps_done == len(feed) or progress.due(steps_done):
                self._read_losses(totals, len(batch.labels))
                totals.seconds = before.seconds + time.perf_counter() - start
                for name, seconds in vars(feed.waits).items():
                    setattr(totals, name, getattr(before, name) + seconds - getattr(waited, name))
            if stopped:
                return False
            if progress.due(steps_done):
                progress.show(
                    steps_done, totals.loss, totals.images_per_second, totals.wait_share
                )
        return True

    def train_step(self, batch: Batch) -> Tensor:
        """One step of gradient descent; returns the batch's mean loss, a scalar on the device."""
        epoch = self.step // self.steps_per_epoch
        rate = self.schedule.rate(self.step)
        set_learning_rates(self.optimizer, rate, epoch, self.preset.training)
        device = batch.images.device
        divisor = self.preset.augmentation.divisor(epoch)
        masks = self.model.dropout_masks(self.seed, self.step, len(batch.labels), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.model(batch.images, batch.crop, masks, divisor)
        loss = F.cross_entropy(logits.float(), batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _read_losses(self, totals: Totals, batch_size: int) -> None:
        """Moves the losses kept on the device into `totals`, in the order of their steps."""
        losses = torch.stack(self._unread).tolist()
        first = self.step - len(losses)
        self._unread.clear()
        for step, loss in enumerate(losses, first + 1):
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss of step {step} is {loss}")
            totals.loss_sum += loss * batch_size
