"""Gradients summed over ranks in flat buckets, each sent off as soon as backward has filled it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.collectives import Group

BUCKET_BYTES = 32 * 2**20  # large enough for full bandwidth, small enough to begin early


class GradientReducer:
    """Sums the gradients of parameters that every rank of a group holds and feeds other images.

    parameters: in the order of the layers; backward fills them from the last, so the buckets are
    cut from the end: fully-connected layers leave first. wire_dtype: what travels; None for the
    gradients' own. Gradients lie in the buckets' own memory, where they are summed in place.

    Each step: `begin`, backward passes of which the last one is within `begin(last=True)`, then
    `finish`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        group: Group,
        *,
        wire_dtype: torch.dtype | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._group, self._wire_dtype = group, wire_dtype
        self._sends = False
        self._buckets: list[_Bucket] = []
        if group.size == 1:
            return
        for run in _runs(list(parameters)[::-1], bucket_bytes):
            bucket = _Bucket.of(run)
            self._buckets.append(bucket)
            for parameter in run:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda parameter, bucket=bucket: self._filled(bucket)
                )  # torch leaves it without annotations

    def begin(self, *, last: bool = True) -> None:
        """Before a backward pass; last: whether the gradients are complete after it."""
        self._sends = last
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def finish(self) -> None:
        """Waits until all gradients are the sums over the ranks."""
        for bucket in self._buckets:
            assert not bucket.missing, "backward left out a parameter"
            if bucket.work is not None:
                bucket.work.wait()
                bucket.work = None
            if bucket.wire is not None:
                bucket.flat.copy_(bucket.wire)
                bucket.wire = None
        self._sends = False

    def _filled(self, bucket: "_Bucket") -> None:
        bucket.missing -= 1
        if bucket.missing or not self._sends:
            return
        sent = bucket.flat
        if self._wire_dtype not in (None, sent.dtype):
            sent = bucket.wire = sent.to(self._wire_dtype)
        bucket.work = self._group.all_reduce(sent)


@dataclass
class _Bucket:
    """Parameters whose gradients are views of one flat tensor."""

    parameters: Sequence[nn.Parameter]
    flat: Tensor
    missing: int = 0  # gradients that this backward pass has yet to fill
    wire: Tensor | None = None
    work: "dist.Work | None" = None

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter]) -> "_Bucket":
        flat = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
        start = 0
        for parameter in parameters:
            # The parameter's own memory format, so that the optimiser reads both alike.
            parameter.grad = flat.as_strided(parameter.shape, parameter.stride(), start)
            start += parameter.numel()
        return cls(parameters, flat)


def _runs(parameters: Sequence[nn.Parameter], most_bytes: int) -> list[list[nn.Parameter]]:
    """The parameters in runs of one dtype and device, of at most `most_bytes` or one alone."""
    runs: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        alike = runs and (parameter.dtype, parameter.device) == (
            runs[-1][0].dtype, runs[-1][0].device,
        )  # fmt: skip
        if not alike or size + parameter.nbytes > most_bytes:
            runs.append([])
            size = 0
        runs[-1].append(parameter)
        size += parameter.nbytes
    return runs
