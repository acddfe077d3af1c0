"""Train one epoch; validate."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler import record_function

from pipeline.loader import Batch
from pipeline.waits import Waits
from trainer.accumulation import micro_batches
from trainer.captured import CapturedStep
from trainer.ema import Ema
from trainer.guard import LossRecord
from trainer.metrics import Progress, Totals
from trainer.model import AlexNet
from trainer.optimizer import build_optimizer, set_learning_rates
from trainer.parallel import UNIT_LAYERS, Layout
from trainer.precision import Arithmetic, zero_momentum
from trainer.preset import Preset
from trainer.reducer import BUCKET_BYTES, GradientReducer
from trainer.schedule import build_schedule
from trainer.weight_report import WeightChange, copy_weights, weight_changes
from trainer.world import Wish

NUM_KERNEL_BUCKETS = 4  # about: conv5, conv4, conv3, the first two; all leave beside backward


class Feed(Protocol):
    """What the trainer needs of a loader; `pipeline.loader.Loader` has more."""

    @property
    def waits(self) -> Waits:
        """How long its consumer waited so far."""

    def __len__(self) -> int:
        """Steps per epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """The remaining steps of the current epoch."""


class Trainer:
    """A network in training: its optimiser, its schedule and how many steps it has made.

    The loss stays on the device; it is read only when a report or a look at it is due and at the
    end of an epoch. micro_batch: images per forward and backward pass, None for the whole batch;
    ema_decay: of the moving average of the weights, None for none; wire_dtype: of gradients on
    their way to other ranks, None for their own; captured: the step is a CUDA graph, for which
    `why_eager` must be silent. Where the model's layout shares
    the work out, all ranks do everything in the same order, each with its part of every batch.
    """

    def __init__(
        self,
        *,
        model: AlexNet,
        preset: Preset,
        steps_per_epoch: int,
        seed: int,
        precision: str,
        micro_batch: int | None = None,
        ema_decay: float | None = None,
        wire_dtype: torch.dtype | None = None,
        captured: bool = False,
    ) -> None:
        self.model, self.preset, self.seed = model, preset, seed
        self.precision, self.micro_batch = precision, micro_batch
        self.layout = model.layout
        self.device = next(model.parameters()).device
        self.arithmetic = Arithmetic(precision, self.device)
        fused = self.device.type == "cuda" or self.arithmetic.skips_steps
        self.optimizer = build_optimizer(model, preset, fused=fused)
        if self.arithmetic.skips_steps:
            zero_momentum(self.optimizer)
        self.schedule = build_schedule(preset, steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.ema = None if ema_decay is None else Ema(model, ema_decay)
        self.step = 0
        self.watch_weights = False  # in the last step of the epoch
        self.weight_changes: dict[str, WeightChange] = {}  # in the last step that was watched
        self.when_good: Callable[[], None] | None = None  # called where all losses were finite
        self._losses = LossRecord(layout=self.layout)
        self._reducers = _reducers(model, wire_dtype)
        self._whole: AlexNet | None = None
        assert not captured or why_eager(
            self.device, model.layout, self.arithmetic.skips_steps, micro_batch
        ) is None
        self._captures = captured
        self._captured: CapturedStep | None = None

    def tested_model(self) -> AlexNet:
        """The network that is validated: with the averaged weights where there is an average.

        The whole network, on every rank; every rank calls it.
        """
        tested = self.ema.model if self.ema else self.model
        if self.layout.ranks.size == 1:
            return tested
        if self._whole is None:
            self._whole = AlexNet(self.preset, tested.num_classes, tested.width).place(self.device)
        self._whole.load_state_dict(self.layout.whole_state(tested.state_dict()))
        return self._whole

    def train_epoch(
        self,
        feed: Feed,
        totals: Totals,
        progress: Progress,
        wish: Callable[[], Wish],
        save: Callable[[], None] | None = None,
    ) -> bool:
        """Trains on the remaining steps of the feed's epoch, adding to `totals`.

        wish: asked between two steps, with everything in place for a checkpoint; returns False
        where it was to stop, and calls `save` where it was to save. LossNotFinite, naming the
        step, where the loss is not finite.
        """
        self.model.train()
        before, start = Totals(**vars(totals)), time.perf_counter()
        waited, num_ranks = feed.waits, self.layout.ranks.size
        steps_done = self.step % len(feed)
        for batch in feed:
            steps_done += 1
            finished = steps_done == len(feed)
            watched = finished and self.watch_weights
            self._losses.add(self._watched_step(batch) if watched else self.train_step(batch))
            num_images = len(batch.labels) * num_ranks
            totals.num_images += num_images
            wished = Wish.NOTHING if finished else wish()
            # Ranks read together, so none by its clock.
            due = progress.due(steps_done) if num_ranks == 1 else self._losses.due
            if wished or finished or self._losses.due or due:
                for loss in self._losses.read(self.step):
                    totals.loss_sum += loss * num_images
                if self.when_good:
                    self.when_good()
                totals.seconds = before.seconds + time.perf_counter() - start
                for name, seconds in vars(feed.waits).items():
                    setattr(totals, name, getattr(before, name) + seconds - getattr(waited, name))
            if wished == Wish.STOP:
                return False
            if wished == Wish.SAVE and save:
                save()
            if due and progress.late(steps_done):
                progress.show(
                    steps_done, totals.loss, totals.images_per_second, totals.wait_share
                )
        return True

    def train_step(self, batch: Batch) -> Tensor:
        """One step of gradient descent; returns the batch's mean loss, a scalar on the device.

        Of several ranks: what the rows of this one add to it.
        """
        epoch = self.step // self.steps_per_epoch
        rate = self.schedule.rate(self.step)
        set_learning_rates(self.optimizer, rate, epoch, self.preset.training)
        divisor = self.preset.augmentation.divisor(epoch)
        if self._captures:
            loss = self._captured_step(batch)(batch, divisor, self.seed, self.step)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._add_gradients(batch, divisor)
            self.arithmetic.update(self.optimizer)
        if self.ema:
            self.ema.update(self.model)
        self.step += 1
        return loss

    def compute_plainly(self) -> None:
        """From now on layer by layer, each by its own module, so that hooks see all of it."""
        self._captures, self._captured = False, None
        self.model.forms, self.model.fuses = {}, False

    def _captured_step(self, batch: Batch) -> CapturedStep:
        """The step as a graph: recorded for the first batch, and where a layer was frozen."""
        if self._captured is None or not self._captured.fits(batch):
            self._captured = None  # its memory first
            self._captured = CapturedStep(self.model, self.optimizer, self.arithmetic, batch)
        return self._captured

    def _add_gradients(self, batch: Batch, divisor: float) -> Tensor:
        """Forward and backward over the micro-batches; returns the mean loss of the batch."""
        num_images = len(batch.labels) * self.layout.ranks.size
        masks = self.model.dropout_masks(self.seed, self.step, num_images, self.device)
        seen = self._seen(batch)
        of_batch = len(seen.labels) * self.layout.rows.size / num_images  # rows of the logits
        parts = list(micro_batches(seen, masks, self.micro_batch, self.layout.rows.size))
        for reducer in self._reducers:
            reducer.begin(len(parts))
        losses = []
        for part, part_masks, share in parts:
            with record_function("forward"), self.arithmetic.autocast():
                logits = self.model(
                    part.images, part.crop, part_masks, divisor, part.lighting
                )
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = self.layout.labels(part.labels)
            loss = F.cross_entropy(wide, labels) * (share * of_batch)
            with record_function("backward"):
                self.arithmetic.backward(loss)
            losses.append(loss.detach())
        for reducer in self._reducers:
            reducer.finish()
        return torch.stack(losses).sum()

    def _seen(self, batch: Batch) -> Batch:
        """The images that this rank's convolutions see, of which it decoded those of `batch`."""
        if self.layout.kernels.size == 1:
            return batch
        images = self.layout.images
        return batch.each(lambda mine: mine if mine is batch.ids else images(mine))

    def _watched_step(self, batch: Batch) -> Tensor:
        """As `train_step`; keeps what it did to each weight."""
        before = self.layout.whole_state(copy_weights(self.model))
        loss = self.train_step(batch)
        after = self.layout.whole_state(copy_weights(self.model))
        self.weight_changes = weight_changes(after, before)
        return loss


def why_eager(
    device: torch.device, layout: Layout, skips_steps: bool, micro_batch: int | None
) -> str | None:
    """Why a step cannot be captured as a graph; None where it can."""
    if device.type != "cuda":
        return f"{device.type} has no graphs"
    if layout.ranks.size > 1:
        return "the exchange between processes is not captured"
    if skips_steps:
        return "fp16 scales its loss step by step"
    return "micro-batches come one by one" if micro_batch else None


def _reducers(model: AlexNet, wire_dtype: torch.dtype | None) -> list[GradientReducer]:
    """For the gradients of what other ranks hold too: units, then kernels, as backward goes."""
    units = [p for name, p in model.named_parameters() if name.startswith(UNIT_LAYERS)]
    kernels = [p for name, p in model.named_parameters() if not name.startswith(UNIT_LAYERS)]
    layout = model.layout
    part_bytes = max(1, sum(p.nbytes for p in kernels) // NUM_KERNEL_BUCKETS)
    return [
        GradientReducer(units, layout.unit_copies, wire_dtype=wire_dtype, title="units"),
        GradientReducer(
            kernels,
            layout.kernel_copies,
            wire_dtype=wire_dtype,
            bucket_bytes=min(BUCKET_BYTES, part_bytes),
            title="kernels",
        ),
    ]
