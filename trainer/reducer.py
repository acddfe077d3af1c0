"""Gradients summed over ranks in flat buckets, each sent off as soon as backward has filled it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from trainer.collectives import Group

BUCKET_BYTES = 32 * 2**20  # large enough for full bandwidth, small enough to begin early


class GradientReducer:
    """Sums the gradients of parameters that every rank of a group holds and feeds other images.

    parameters: in the order of the layers; backward fills them from the last, so the buckets are
    cut from the end: fully-connected layers leave first. wire_dtype: what travels; None for the
    gradients' own. title: in a profile. Gradients lie in the buckets' own memory, where they are
    summed in place.

    Each step: `begin`, as many backward passes as it was told, `finish`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        group: Group,
        *,
        wire_dtype: torch.dtype | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        title: str = "",
    ) -> None:
        self._group, self._wire_dtype, self.title = group, wire_dtype, title
        self._buckets: list[_Bucket] = []
        if group.size == 1:
            return
        for number, run in enumerate(_runs(list(parameters)[::-1], bucket_bytes)):
            self._buckets.append(_Bucket.of(run))
            for parameter in run:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda parameter, number=number: self._filled(number)
                )  # torch leaves it without annotations

    def begin(self, num_passes: int = 1) -> None:
        """Gradients to zero; they are complete after `num_passes` backward passes.

        Parameters that need no gradient now keep none.
        """
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.missing = num_passes * bucket.attach()

    def finish(self) -> None:
        """Waits until all gradients are the sums over the ranks."""
        for number, bucket in enumerate(self._buckets):
            assert not bucket.missing, "backward left out a parameter"
            if bucket.work is not None:
                with record_function(f"wait for bucket {self._name(number)}"):
                    bucket.work.wait()
                bucket.work = None
            if bucket.wire is not None:
                bucket.flat.copy_(bucket.wire)
                bucket.wire = None

    def _filled(self, number: int) -> None:
        bucket = self._buckets[number]
        bucket.missing -= 1
        if bucket.missing:
            return
        with record_function(f"send bucket {self._name(number)}"):
            sent = bucket.flat
            if self._wire_dtype not in (None, sent.dtype):
                sent = bucket.wire = sent.to(self._wire_dtype)
            bucket.work = self._group.all_reduce(sent)

    def _name(self, number: int) -> str:
        """In a profile."""
        return f"{number} of {self.title}" if self.title else str(number)


@dataclass
class _Bucket:
    """Parameters whose gradients are views of one flat tensor."""

    parameters: Sequence[nn.Parameter]
    flat: Tensor
    missing: int = 0  # gradients yet to be added before it is complete
    wire: Tensor | None = None
    work: "dist.Work | None" = None

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter]) -> "_Bucket":
        size = sum(parameter.numel() for parameter in parameters)
        return cls(parameters, parameters[0].new_zeros(size))

    def attach(self) -> int:
        """Makes the gradients views of `flat`; how many parameters need one."""
        start = num_needed = 0
        for parameter in self.parameters:
            if parameter.requires_grad:
                # The parameter's own memory format, so that the optimiser reads both alike.
                parameter.grad = self.flat.as_strided(parameter.shape, parameter.stride(), start)
                num_needed += 1
            start += parameter.numel()
        return num_needed


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
