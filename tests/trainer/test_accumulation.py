"""A batch and its dropout masks in parts."""

import pytest
import torch

from tests.trainer.conftest import make_batch
from trainer.accumulation import micro_batches


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(None, [7]), (1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])],
)
def test_the_parts_are_the_batch(size: int | None, lengths: list[int]) -> None:
    batch, mask = make_batch(7, 3, 1), torch.arange(14.0).view(7, 2)
    parts = list(micro_batches(batch, (mask, None), size))
    assert [len(part.labels) for part, _, _ in parts] == lengths
    assert [share for _, _, share in parts] == [length / 7 for length in lengths]
    for name in ("images", "labels", "ids", "crop"):
        whole = torch.cat([getattr(part, name) for part, _, _ in parts])
        assert torch.equal(whole, getattr(batch, name))
    masks = [own[0] for _, own, _ in parts]
    assert torch.equal(torch.cat([own for own in masks if own is not None]), mask)
    assert all(own[1] is None for _, own, _ in parts)
