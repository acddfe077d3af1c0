"""What ranks exchange, each with its exact gradient, and how many bytes that is.

The gradients are written out, because those of `torch.distributed.nn` are made for losses that
differ from rank to rank: where every rank of a group computes the same loss, its differentiable
all-reduce gives the group's size times the gradient.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed both and warns of the old names.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_AXIS = (0, 3, 1, 2)  # of (batch, channel, height, width) when the channels have come last
_BACK = (0, 3, 1, 2)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class Group:
    """Ranks that work on the same tensors: their collectives, and the bytes each of them sends.

    bytes_sent: since the start, by this rank, as rings do it: an all-gather or reduce-scatter of
    n parts sends n - 1 of them, an all-reduce twice that. ranks: None stands for a group of one,
    in which every collective is the identity.
    """

    def __init__(self, ranks: dist.ProcessGroup | None = None) -> None:
        self.ranks = ranks
        self.size = 1 if ranks is None else ranks.size()
        self.rank = 0 if ranks is None else ranks.rank()
        self.bytes_sent = 0

    def part(self, length: int) -> slice:
        """This rank's run of an axis that is shared out; `length` must divide by `size`."""
        assert length % self.size == 0
        share = length // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, x: Tensor, axis: int) -> Tensor:
        """The parts of all ranks joined along `axis`; the gradient's sums go back to each part.

        Every rank goes on to compute a part of the same loss from the whole.
        """
        return x if self.size == 1 else _apply(_Gather, x, self, axis)

    def add(self, x: Tensor) -> Tensor:
        """The sum over the ranks, of which each goes on to compute the same loss.

        So the gradient of every summand is that of the sum, unchanged.
        """
        return x if self.size == 1 else _apply(_Add, x, self)

    def all_gather(self, x: Tensor, axis: int) -> Tensor:
        """`gather` without a gradient; channels-last maps stay so."""
        if self.size == 1:
            return x
        if _is_channels_last(x):
            return self.all_gather(_pixels_first(x), _AXIS[axis]).permute(_BACK)
        x = x.contiguous()
        self.bytes_sent += (self.size - 1) * x.nbytes
        out = x.new_empty((self.size * len(x), *x.shape[1:]))
        _all_gather(out, x, group=self.ranks)
        return out if axis == 0 else torch.cat(out.chunk(self.size), dim=axis)

    def reduce_scatter(self, x: Tensor, axis: int) -> Tensor:
        """This rank's part, along `axis`, of the sum over the ranks; the inverse of a gather."""
        if self.size == 1:
            return x
        if _is_channels_last(x):
            return self.reduce_scatter(_pixels_first(x), _AXIS[axis]).permute(_BACK)
        parts = x.contiguous() if axis == 0 else torch.cat(x.chunk(self.size, dim=axis))
        out = parts.new_empty((len(parts) // self.size, *parts.shape[1:]))
        self.bytes_sent += (self.size - 1) * out.nbytes
        _reduce_scatter(out, parts, group=self.ranks)
        return out

    def broadcast(self, x: Tensor) -> Tensor:
        """The first rank's x, on every rank."""
        if self.size == 1:
            return x
        assert self.ranks is not None
        out = x.detach().clone(memory_format=torch.contiguous_format)
        if self.rank == 0:
            self.bytes_sent += (self.size - 1) * x.nbytes
        dist.broadcast(out, group=self.ranks, group_src=0)
        return out

    def total(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, without a gradient, waited for."""
        return x if self.size == 1 else _sum(x, self)

    def all_reduce(self, x: Tensor) -> "dist.Work | None":
        """Begins to replace x, contiguous, by its sum over the ranks; wait() for what comes back.

        None where there is nobody to wait for.
        """
        if self.size == 1:
            return None
        self.bytes_sent += 2 * (self.size - 1) * x.nbytes // self.size
        work: dist.Work | None = dist.all_reduce(x, group=self.ranks, async_op=True)
        return work


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, axis: int) -> Tensor:
        ctx.group, ctx.axis = group, axis
        return group.all_gather(x, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.group.reduce_scatter(gradients[0], ctx.axis), None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and (
        not x.is_contiguous()
    )


def _pixels_first(x: Tensor) -> Tensor:
    """(batch, height, width, channel), as channels-last memory has it: nothing is copied."""
    return x.permute(0, 2, 3, 1)


def _sum(x: Tensor, group: Group) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    work = group.all_reduce(total)
    assert work is not None
    work.wait()
    return total


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    out: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]  # torch's decorator
    return out
