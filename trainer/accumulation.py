"""A batch in parts that are small enough for the memory of the machine."""

from collections.abc import Iterator
from operator import itemgetter

from torch import Tensor

from pipeline.loader import Batch

Masks = tuple[Tensor | None, Tensor | None]


def micro_batches(
    batch: Batch, masks: Masks, micro_batch: int | None, num_sources: int = 1
) -> Iterator[tuple[Batch, Masks, float]]:
    """The batch in parts of `micro_batch` images (the last may be smaller), each with its masks.

    masks: of dropout, (batch, hidden) each, drawn for the whole batch, so that a part has the
    rows it would have had in it. The third value is the part's share of the batch: the parts'
    mean losses times their shares add up to the batch's mean loss, and so do their gradients.
    None: the batch is one part. num_sources: the masks are of the batches of so many ranks, one
    after the other, of which each is cut alike.
    """
    num_images = len(batch.labels)
    size = micro_batch or num_images
    for first in range(0, num_images, size):
        part = slice(first, first + size)
        images = batch.each(itemgetter(part))
        own = tuple(None if mask is None else _rows(mask, part, num_sources) for mask in masks)
        assert len(own) == 2
        yield images, own, len(images.labels) / num_images


def _rows(mask: Tensor, part: slice, num_sources: int) -> Tensor:
    """The rows `part` of each of the `num_sources` equal runs of a mask's rows."""
    if num_sources == 1:
        return mask[part]
    return mask.view(num_sources, -1, mask.shape[1])[:, part].flatten(0, 1)
