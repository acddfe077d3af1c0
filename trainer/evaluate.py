"""Errors over a split: from the centre crop, or from ten views with averaged probabilities."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX
from pipeline.loader import Batch
from trainer.model import AlexNet

_FAR_PX = SIZE_PX - CROP_PX
_MIDDLE_PX = _FAR_PX // 2
TEN_VIEWS = tuple(  # x, y, flip: corners and centre, each with its mirror image (paper §4.1)
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

    def line(self) -> str:
        """The errors for a person."""
        return (
            f"top-1 error {self.top1_error:.2%}, top-5 error {self.top5_error:.2%}, "
            f"loss {self.loss:.4f} over {self.num_images:,} images"
        )


@torch.inference_mode()
def evaluate(model: AlexNet, batches: Iterable[Batch], views: int = 1) -> Errors:
    """The errors over all images of `batches`, in float32; the model is left in test mode.

    With `views=1` the batches hold 224x224 centre crops, with `views=10` whole 256x256 images.
    ValueError where there is no image.
    """
    assert views in (1, 10)
    model.eval()
    num_images = 0
    sums: Tensor | None = None  # sums: (loss, top-1 errors, top-5 errors), float64, on the device
    for batch in batches:
        if views == 1:
            log_probabilities = centre_crop(model, batch.images, batch.crop)
        else:
            log_probabilities = ten_views(model, batch.images)
        num_images += len(batch.labels)
        own = log_probabilities.gather(1, batch.labels[:, None])[:, 0]
        parts = torch.stack(
            [
                -own.double().sum(),
                misses(log_probabilities, batch.labels, 1).sum().double(),
                misses(log_probabilities, batch.labels, 5).sum().double(),
            ]
        )
        sums = parts if sums is None else sums + parts
    if sums is None or num_images == 0:
        raise ValueError("no image to evaluate on; prepare a source that has a val/ folder")
    loss, top1, top5 = (float(value) / num_images for value in sums.tolist())
    return Errors(num_images=num_images, loss=loss, top1_error=top1, top5_error=top5)


def centre_crop(model: AlexNet, images: Tensor, crop: Tensor) -> Tensor:
    """Log-probabilities (batch, classes), float32, of (batch, 3, 224, 224) crops in test mode."""
    return torch.log_softmax(model(images, crop, None).float(), 1)


def ten_views(model: AlexNet, images: Tensor) -> Tensor:
    """Log of the probabilities averaged over ten views, (batch, classes), float32.

    images: (batch, 3, 256, 256), 0..255 of any dtype. Averaged as probabilities, not as logits
    (paper §4.1).
    """
    assert images.shape[-2:] == (SIZE_PX, SIZE_PX)
    views = []
    for x, y, flip in TEN_VIEWS:
        view = images[:, :, y : y + CROP_PX, x : x + CROP_PX]
        crop = torch.tensor([[x, y, flip]], device=images.device).expand(len(images), 3)
        views.append(centre_crop(model, view.flip(3) if flip else view, crop))
    # stacked: (view, batch, class)
    return torch.logsumexp(torch.stack(views), 0) - math.log(len(views))


def misses(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """True where the label is not among the k best scores, (batch,).

    Of equal scores the lower class counts as better; a label whose score is not a number is
    missed. With k classes or fewer nothing else is missed.
    """
    own = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    better = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    return (better.sum(1) >= k) | own[:, 0].isnan()
