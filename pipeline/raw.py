"""The backend of raw images on a GPU, past DALI: one copy, then gather, crop, flip, lighting."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.backends import RenderSettings, Work
from pipeline.copies import Copies, Event, GpuCopies, HostCopies
from pipeline.gather import gather_crop
from pipeline.images import SIZE_PX
from pipeline.ranges import shown

DTYPES: dict[type[np.generic], torch.dtype] = {
    np.uint8: torch.uint8,
    np.float16: torch.float16,
    np.float32: torch.float32,
}


@dataclass
class _Slot:
    """A step's memory on the device, and on the host that of its draws."""

    images: Tensor  # uint8 (max rows, 256, 256, 3)
    crop: Tensor  # int32 (max rows, 3)
    offsets: Tensor  # float32 (max rows, 3)
    host_crop: Tensor
    host_offsets: Tensor
    used: Event  # its memory on the device may be written to again
    num_rows: int = 0
    lit: bool = False  # whether there is lighting
    copied: Event | None = None  # its step is on the device


class RawBackend:
    """Renders raw steps on settings.device, or with the same code on the CPU.

    A step's bytes, in page-locked memory, are copied as soon as they are submitted, in a stream of
    their own; crops are made in what is torch's current stream when the step is taken. The host
    waits for neither. Memory on the device: depth + 1 steps of 192 KiB an image, allocated once.
    """

    def __init__(self, settings: RenderSettings, copies: Copies | None = None) -> None:
        assert settings.encoding == "raw"
        self._settings = settings
        on_cpu = settings.device is None
        self._device = torch.device("cpu" if on_cpu else f"cuda:{settings.device}")
        if copies is None:
            copies = HostCopies() if on_cpu else GpuCopies(self._device)
        self._copies = copies
        # One more than are submitted at once: a copy need not wait for the crops of the last.
        self._free = deque(self._slot() for _ in range(settings.depth + 1))
        self._begun: deque[_Slot] = deque()
        self._last_copied: Event | None = None

    def prepare(self, work: Work) -> Work:
        """As it is."""
        return work

    @shown("submit")
    def submit(self, prepared: Work) -> None:
        """Begins to copy a step; its bytes must stay until it is taken and `still_reading`."""
        work = prepared
        slot = self._free.popleft()
        if slot.copied is not None:
            slot.copied.synchronize()  # long past: its draws were copied depth + 1 steps ago
        n = slot.num_rows = len(work.crop)
        slot.host_crop[:n] = torch.from_numpy(work.crop)
        images = torch.from_numpy(work.encoded.data).view(n, SIZE_PX, SIZE_PX, 3)
        pairs = [(slot.images[:n], images), (slot.crop[:n], slot.host_crop[:n])]
        slot.lit = work.offsets is not None
        if work.offsets is not None:
            slot.host_offsets[:n] = torch.from_numpy(work.offsets)
            pairs.append((slot.offsets[:n], slot.host_offsets[:n]))
        slot.copied = self._copies.begin(pairs, after=slot.used)
        self._begun.append(slot)

    @shown("take")
    def take(self) -> Tensor:
        """The oldest step, NHWC, in the current stream of its device."""
        slot = self._begun.popleft()
        assert slot.copied is not None
        self._copies.wait(slot.copied)
        self._last_copied = slot.copied
        n = slot.num_rows
        if self._settings.full:
            pixels = slot.images[:n].clone()
        else:
            rows = torch.arange(n, device=self._device)
            offsets = slot.offsets[:n] if slot.lit else None
            dtype = DTYPES[self._settings.dtype]
            pixels = gather_crop(slot.images, rows, slot.crop[:n], offsets, dtype)
        slot.used = self._copies.mark()
        self._free.append(slot)
        return pixels

    @property
    def still_reading(self) -> Callable[[], object] | None:
        """Waits until the bytes of the step last taken have been copied."""
        return None if self._last_copied is None else self._last_copied.synchronize

    def clear(self) -> None:
        """Forgets what was submitted, once nothing of it is read any more."""
        while self._begun:
            slot = self._begun.popleft()
            assert slot.copied is not None
            slot.copied.synchronize()
            self._free.append(slot)

    def close(self) -> None:
        """Frees the memory."""
        self.clear()
        for slot in self._free:
            slot.used.synchronize()  # torch would give its memory away by another stream's clock
        self._free.clear()

    def _slot(self) -> _Slot:
        rows, device = self._settings.max_rows, self._device
        pinned = device.type == "cuda"
        return _Slot(
            images=torch.empty((rows, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8, device=device),
            crop=torch.empty((rows, 3), dtype=torch.int32, device=device),
            offsets=torch.empty((rows, 3), dtype=torch.float32, device=device),
            host_crop=torch.empty((rows, 3), dtype=torch.int32, pin_memory=pinned),
            host_offsets=torch.empty((rows, 3), dtype=torch.float32, pin_memory=pinned),
            used=self._copies.mark(),
        )
