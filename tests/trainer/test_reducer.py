"""Reduced gradients are those of torch's DDP and of one process, whatever the buckets."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.trainer.ranks import run_ranks
from trainer.collectives import Group
from trainer.reducer import GradientReducer

BATCH = 8


def network() -> nn.Module:
    torch.manual_seed(0)
    kernels = nn.Conv2d(3, 4, 3)
    kernels.weight.data = kernels.weight.data.contiguous(memory_format=torch.channels_last)
    return nn.Sequential(kernels, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).double()


def batch() -> Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 3, 8, 8, generator=source, dtype=torch.float64)


def loss_of(net: nn.Module, images: Tensor) -> Tensor:
    """The sum over images, divided by the global batch."""
    out: Tensor = torch.logsumexp(net(images), dim=1).sum() / BATCH
    return out


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def whole() -> list[Tensor]:
    net = network()
    loss_of(net, batch()).backward()  # type: ignore[no-untyped-call]
    return gradients(net)


def reduced(
    bucket_bytes: int, micro_batches: int, wire: torch.dtype | None
) -> tuple[list[Tensor], int, bool]:
    group = Group(dist.group.WORLD)
    net = network()
    reducer = GradientReducer(
        net.parameters(), group, wire_dtype=wire, bucket_bytes=bucket_bytes
    )
    images = batch().chunk(group.size)[group.rank]
    for _ in range(2):  # a second step, to see that nothing of the first is left
        net.zero_grad(set_to_none=True)
        group.bytes_sent = 0
        reducer.begin(micro_batches)
        for part in images.chunk(micro_batches):
            loss_of(net, part).backward()  # type: ignore[no-untyped-call]
        reducer.finish()
    alike = all(p.grad is not None and p.grad.stride() == p.stride() for p in net.parameters())
    return gradients(net), group.bytes_sent, alike


def frozen() -> tuple[bool, list[Tensor], list[Tensor]]:
    """The gradients of a step with the kernels frozen, and of one after it."""
    group = Group(dist.group.WORLD)
    net = network()
    reducer = GradientReducer(net.parameters(), group)
    images = batch().chunk(group.size)[group.rank]
    steps = []
    for needed in (False, True):
        for parameter in list(net.parameters())[:2]:
            parameter.requires_grad_(needed)
        net.zero_grad(set_to_none=True)
        reducer.begin()
        loss_of(net, images).backward()  # type: ignore[no-untyped-call]
        reducer.finish()
        none = next(net.parameters()).grad is None
        steps.append((none, gradients(net)))
    return steps[0][0] and not steps[1][0], steps[0][1], steps[1][1]


def test_frozen_parameters_keep_no_gradient_and_thaw() -> None:
    expected = whole()
    for none, without, later in run_ranks(2, frozen):
        assert none
        torch.testing.assert_close(without, expected[2:], rtol=0, atol=1e-14)
        torch.testing.assert_close(later, expected, rtol=0, atol=1e-14)


def by_ddp() -> list[Tensor]:
    net = nn.parallel.DistributedDataParallel(network())
    group = Group(dist.group.WORLD)
    images = batch().chunk(group.size)[group.rank]
    (loss_of(net, images) * group.size).backward()  # type: ignore[no-untyped-call]  # DDP averages
    return gradients(net)


@pytest.mark.parametrize(
    ("num_ranks", "bucket_bytes", "micro_batches"), [(2, 1, 1), (2, 2000, 2), (4, 2**20, 1)]
)
def test_gradients_are_the_sums_over_ranks(
    num_ranks: int, bucket_bytes: int, micro_batches: int
) -> None:
    expected = whole()
    size = sum(gradient.nbytes for gradient in expected)
    for found, sent, alike in run_ranks(num_ranks, reduced, bucket_bytes, micro_batches, None):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
        assert abs(sent - 2 * (num_ranks - 1) * size / num_ranks) < 8
        assert alike


def test_gradients_are_those_of_ddp() -> None:
    ours = run_ranks(2, reduced, 2000, 1, None)
    for (found, _, _), theirs in zip(ours, run_ranks(2, by_ddp), strict=True):
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-14)


def test_half_the_bytes_travel_in_half_the_width() -> None:
    expected = whole()
    for found, sent, _ in run_ranks(2, reduced, 2**20, 1, torch.bfloat16):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-3)
        assert sent == sum(gradient.numel() for gradient in expected) * 2


def test_one_rank_keeps_its_own_gradients() -> None:
    net = network()
    reducer = GradientReducer(net.parameters(), Group())
    reducer.begin()
    loss_of(net, batch()).backward()  # type: ignore[no-untyped-call]
    reducer.finish()
    torch.testing.assert_close(gradients(net), whole(), rtol=0, atol=0)
