"""Copies from page-locked host memory to a GPU, beside the GPU's other work.

What is copied is awaited by streams, not by the host; the host asks an event before it writes to
that memory again. `HostCopies` is the same where there is no GPU.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Event(Protocol):
    """A moment in a stream."""

    def synchronize(self) -> None:
        """Waits, on the host and without the GIL, until the device has come to it."""


class Copies(Protocol):
    """Copies to a device."""

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]], after: Event | None) -> Event:
        """Begins to copy (target, source), once the device has come to `after`; returns the end.

        The sources lie in page-locked memory and stay as they are until then.
        """

    def wait(self, event: Event) -> None:
        """Has the current stream wait for the event; the host goes on."""

    def mark(self) -> Event:
        """The end of what the current stream has been given so far."""


class GpuCopies:
    """Copies to a GPU in a stream of their own; its events are torch's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]], after: Event | None) -> Event:
        """See Copies."""
        if after is not None:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        end: Event = self._stream.record_event()
        return end

    def wait(self, event: Event) -> None:
        """See Copies."""
        self._current().wait_event(event)

    def mark(self) -> Event:
        """See Copies."""
        end: Event = self._current().record_event()
        return end

    def _current(self) -> Any:
        return torch.cuda.current_stream(self._device)


class HostCopies:
    """Copies within host memory, at an end when they have begun."""

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]], after: Event | None) -> Event:
        """See Copies."""
        for target, source in pairs:
            target.copy_(source)
        return _Past()

    def wait(self, event: Event) -> None:
        """See Copies."""

    def mark(self) -> Event:
        """See Copies."""
        return _Past()


class _Past:
    """An event that has come."""

    def synchronize(self) -> None:
        """Nothing is left to wait for."""


def pinned_empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """np.empty in page-locked memory, from which a GPU copies by itself; needs a GPU."""
    like = torch.from_numpy(np.empty(0, dtype))
    return torch.empty(shape, dtype=like.dtype, pin_memory=True).numpy()
