"""Errors over a split: one network or several together, from the centre crop or from ten views."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX
from pipeline.loader import Batch
from trainer.collectives import Group
from trainer.model import AlexNet

_FAR_PX = SIZE_PX - CROP_PX
_MIDDLE_PX = _FAR_PX // 2
Views = tuple[tuple[int, int, int], ...]  # x, y, flip of each
ONE_RANK = Group()
CENTRE_VIEW: Views = ((_MIDDLE_PX, _MIDDLE_PX, 0),)
TEN_VIEWS: Views = tuple(  # corners and centre, each with its mirror image (paper §4.1)
    (x, y, flip)
    for flip in (0, 1)
    for x, y in ((0, 0), (_FAR_PX, 0), (0, _FAR_PX), (_FAR_PX, _FAR_PX), (_MIDDLE_PX, _MIDDLE_PX))
)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """What a network gets wrong on a split; errors are fractions, 0..1."""

    num_images: int
    loss: float  # mean cross-entropy
    top1_error: float
    top5_error: float


@dataclass(frozen=True, kw_only=True)
class ClassErrors:
    """What a network gets wrong of one class; errors are fractions, 0..1."""

    label: int
    num_images: int
    top1_error: float
    top5_error: float


class Tally:
    """Errors summed up image by image; the sums stay on the device until they are asked for."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        # counts: (class, [images, top-1 errors, top-5 errors])
        self._counts = torch.zeros(num_classes, 3, dtype=torch.int64, device=device)

    def add(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Counts a batch in; log_probabilities: (batch, classes), labels: (batch,)."""
        self._loss -= log_probabilities.gather(1, labels[:, None]).double().sum()
        missed = [misses(log_probabilities, labels, k) for k in (1, 5)]
        counted = torch.stack([torch.ones_like(labels), *missed], 1)
        self._counts.index_add_(0, labels, counted)

    def add_ranks(self, ranks: Group) -> None:
        """Adds what the other ranks counted, each on images of its own."""
        self._loss, self._counts = ranks.total(self._loss), ranks.total(self._counts)

    def errors(self) -> Errors:
        """Over all images; ValueError where there was none."""
        num_images, top1, top5 = self._counts.sum(0).tolist()
        if num_images == 0:
            raise ValueError("no image to evaluate on; prepare a source that has a val/ folder")
        return Errors(
            num_images=num_images,
            loss=self._loss.item() / num_images,
            top1_error=top1 / num_images,
            top5_error=top5 / num_images,
        )

    def by_class(self) -> list[ClassErrors]:
        """Of every class that has images, in the order of the labels."""
        return [
            ClassErrors(
                label=label,
                num_images=num_images,
                top1_error=top1 / num_images,
                top5_error=top5 / num_images,
            )
            for label, (num_images, top1, top5) in enumerate(self._counts.tolist())
            if num_images
        ]


def evaluate(
    model: AlexNet, batches: Iterable[Batch], views: int = 1, ranks: Group = ONE_RANK
) -> Errors:
    """The errors of one network; see `evaluate_together`. ranks: each with batches of its own."""
    tally = evaluate_together([model], batches, views)[0]
    tally.add_ranks(ranks)
    return tally.errors()


@torch.inference_mode()
def evaluate_together(
    models: Sequence[AlexNet], batches: Iterable[Batch], views: int = 1
) -> list[Tally]:
    """Of each network over all images of `batches`, and last of all of them together.

    Together: their probabilities averaged, over views and networks alike. In float32, each with
    its own normalisation; the models, of the same classes, are left in test mode. With `views=1`
    the batches hold 224x224 centre crops, with `views=10` whole 256x256 images.
    """
    assert views in (1, 10) and models
    for model in models:
        model.eval()
    device = next(models[0].parameters()).device
    tallies = [Tally(models[0].num_classes, device) for _ in range(len(models) + 1)]
    for batch in batches:
        if not len(batch.labels):
            continue  # this rank's part of a small last batch
        each = [
            log_probabilities(model, batch.images, batch.crop)
            if views == 1
            else over_views(model, batch.images, TEN_VIEWS)
            for model in models
        ]
        for tally, found in zip(tallies, [*each, average(each)], strict=True):
            tally.add(found, batch.labels)
    return tallies


def log_probabilities(model: AlexNet, images: Tensor, crop: Tensor) -> Tensor:
    """(batch, classes), float32, of (batch, 3, 224, 224) crops in test mode."""
    return torch.log_softmax(model(images, crop, None).float(), 1)


def over_views(model: AlexNet, images: Tensor, views: Views) -> Tensor:
    """Log of the probabilities averaged over the views, (batch, classes), float32.

    images: (batch, 3, 256, 256), 0..255 of any dtype.
    """
    assert images.shape[-2:] == (SIZE_PX, SIZE_PX)
    found = []
    for x, y, flip in views:
        view = images[:, :, y : y + CROP_PX, x : x + CROP_PX]
        crop = torch.tensor([[x, y, flip]], device=images.device).expand(len(images), 3)
        found.append(log_probabilities(model, view.flip(3) if flip else view, crop))
    return average(found)


def average(log_probabilities: Sequence[Tensor]) -> Tensor:
    """Log of the mean of probabilities given as logs: not of logits (paper §4.1)."""
    # stacked: (one of those averaged, batch, class)
    return torch.logsumexp(torch.stack(list(log_probabilities)), 0) - math.log(
        len(log_probabilities)
    )


def misses(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """True where the label is not among the k best scores, (batch,).

    Of equal scores the lower class counts as better; a label whose score is not a number is
    missed. With k classes or fewer nothing else is missed.
    """
    own = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    better = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    return (better.sum(1) >= k) | own[:, 0].isnan()
