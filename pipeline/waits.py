"""How long a loader's consumer waited for data, and for what."""

import time
from collections import deque
from dataclasses import dataclass, replace

import torch


@dataclass(kw_only=True)
class Waits:
    """Seconds so far: of the host, inside the loader's iterator, then of the device."""

    read_wait_seconds: float = 0.0  # for bytes, while nothing was being rendered
    decode_wait_seconds: float = 0.0  # for pixels
    handover_wait_seconds: float = 0.0  # giving work to the backend, and tensors to the consumer
    device_wait_seconds: float = 0.0  # in which the consumer's stream stood still for its input

    @property
    def data_wait_seconds(self) -> float:
        """Of the host and of the device."""
        on_host = self.read_wait_seconds + self.decode_wait_seconds + self.handover_wait_seconds
        return on_host + self.device_wait_seconds


class WaitClock:
    """Measures `Waits`: what passes before read(), decoded() or handed_over() is theirs.

    device: of the batches. A host clock sees nothing of a GPU's own waiting: events before and
    after the input in its stream do, and are read once it has come past them, one report later.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waits = Waits()
        self._lap = 0.0
        self._before: torch.cuda.Event | None = None
        self._unread: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def waits(self) -> Waits:
        """So far; a copy."""
        self._read_events()
        return replace(self._waits)

    def start(self) -> None:
        """The consumer begins to wait."""
        self._lap = time.perf_counter()

    def read(self) -> None:
        """Bytes were waited for since the last call."""
        self._waits.read_wait_seconds += self._seconds()

    def decoded(self) -> None:
        """Pixels were waited for since the last call."""
        self._waits.decode_wait_seconds += self._seconds()

    def handed_over(self) -> None:
        """Tensors and work changed hands since the last call."""
        self._waits.handover_wait_seconds += self._seconds()

    def before_input(self) -> None:
        """What the consumer's stream is given from here on makes it wait for its input."""
        self._before = self._event()

    def after_input(self) -> None:
        """The input is there."""
        if self._before is not None and (after := self._event()) is not None:
            self._unread.append((self._before, after))
            self._read_events()

    def _seconds(self) -> float:
        last, self._lap = self._lap, time.perf_counter()
        return self._lap - last

    def _event(self) -> torch.cuda.Event | None:
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _read_events(self) -> None:
        while self._unread and self._unread[0][1].query():  # type: ignore[no-untyped-call]
            before, after = self._unread.popleft()
            seconds = before.elapsed_time(after) / 1000  # it is in ms
            self._waits.device_wait_seconds += seconds
