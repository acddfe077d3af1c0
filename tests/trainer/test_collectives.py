"""Collectives have the gradients of one process, and send as many bytes as they say."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainer.ranks import run_ranks
from trainer.collectives import Group

BATCH, FEATURES, HIDDEN, CLASSES = 6, 8, 12, 5


def problem() -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    shapes = (BATCH, FEATURES), (HIDDEN, FEATURES), (CLASSES, HIDDEN)
    x, first, second = (torch.randn(s, generator=source, dtype=torch.float64) for s in shapes)
    return x, first, second


def whole() -> tuple[Tensor, list[Tensor]]:
    x, first, second = (value.requires_grad_() for value in problem())
    loss = torch.logsumexp(torch.relu(x @ first.T) @ second.T, dim=1).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), [value.grad for value in (x, first, second) if value.grad is not None]


def in_parts(axis: int) -> tuple[Tensor, list[Tensor], int]:
    """Two layers shared out by their hidden units; the input comes in parts along `axis`."""
    group = Group(dist.group.WORLD)
    x, first, second = problem()
    part = x.chunk(group.size, dim=axis)[group.rank].clone().requires_grad_()
    first = first[group.part(HIDDEN)].clone().requires_grad_()
    second = second[:, group.part(HIDDEN)].clone().requires_grad_()
    logits = group.add(torch.relu(group.gather(part, axis) @ first.T) @ second.T)
    loss = torch.logsumexp(logits, dim=1).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert part.grad is not None and first.grad is not None and second.grad is not None
    return loss.detach(), [part.grad, first.grad, second.grad], group.bytes_sent


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_gradients_of_shared_out_layers_are_those_of_one_process(num_ranks: int) -> None:
    loss, gradients = whole()
    for axis, ranks in ((a, num_ranks) for a in (0, 1) if not (a == 0 and num_ranks == 4)):
        found = run_ranks(ranks, in_parts, axis)
        for rank_loss, _, _ in found:
            torch.testing.assert_close(rank_loss, loss, rtol=0, atol=1e-14)
        for number, joint in enumerate((axis, 0, 1)):
            joined = torch.cat([parts[number] for _, parts, _ in found], dim=joint)
            torch.testing.assert_close(joined, gradients[number], rtol=0, atol=1e-14)
        # x forward, its gradient back, and the sum of logits
        sent = 2 * (ranks - 1) * BATCH * (FEATURES + CLASSES) // ranks
        assert [bytes_sent for _, _, bytes_sent in found] == [8 * sent] * ranks


def doubled() -> tuple[Tensor, Tensor]:
    """The gradient of a weight below a sum of which every rank computes the same loss."""
    from torch.distributed.nn.functional import all_reduce

    gradients = []
    for add in (Group(dist.group.WORLD).add, all_reduce):
        weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
        add(weight * 3.0).sum().backward()
        assert weight.grad is not None
        gradients.append(weight.grad)
    return gradients[0], gradients[1]


def test_torchs_differentiable_all_reduce_doubles_what_add_does_not() -> None:
    for ours, theirs in run_ranks(2, doubled):
        assert ours.item() == 3.0
        assert theirs.item() == 6.0


def first_and_total() -> tuple[Tensor, Tensor, int]:
    group = Group(dist.group.WORLD)
    mine = torch.tensor(group.rank + 2)
    return group.broadcast(mine), group.total(mine), group.bytes_sent


def test_every_rank_gets_the_first_ones_value_and_the_sum() -> None:
    found = run_ranks(3, first_and_total)
    assert [(int(first), int(total)) for first, total, _ in found] == [(2, 9)] * 3
    summed = 2 * 2 * 8 // 3
    assert [sent for _, _, sent in found] == [2 * 8 + summed, summed, summed]


def test_in_a_group_of_one_nothing_happens() -> None:
    group, x = Group(), torch.ones(2, 2)
    assert group.broadcast(x) is x and group.total(x) is x
    assert group.gather(x, 1) is x and group.add(x) is x and group.all_reduce(x) is None
    assert group.part(6) == slice(0, 6) and group.bytes_sent == 0
