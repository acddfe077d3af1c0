"""From what a backend renders to tensors on the batch's device, without waiting for the device."""

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from pipeline.ranges import shown

MAX_BEING_COPIED = 8  # steps by which the host may be ahead of the GPU: it bounds their memory


class Handover:
    """Gives tensors to the device named, such as "cpu", "cuda" or "cuda:1".

    ValueError where there is none of that name.
    """

    def __init__(self, device: str) -> None:
        try:
            self.device = torch.device(device)
        except RuntimeError as error:  # torch names the kinds it knows
            raise ValueError(f"device {device!r} is none; give cpu, cuda or cuda:1") from error
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {device}: torch sees no GPU here; give device cpu")
        if self.device.type == "cuda" and ":" not in device:
            # Tensors name their index, and a device without one never equals theirs.
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._being_copied: deque[tuple[Any, torch.Tensor]] = deque()  # a CUDA event with each

    @property
    def on_gpu(self) -> bool:
        """Whether batches go to a GPU."""
        return self.device.type == "cuda"

    @shown("hand over")
    def numbers(self, values: NDArray[Any]) -> torch.Tensor:
        """An array as a tensor on the device."""
        return self._moved(torch.from_numpy(np.ascontiguousarray(values)))

    @shown("hand over")
    def pixels(self, rendered: Any) -> torch.Tensor:
        """(N, height, width, 3) of a backend, as (N, 3, height, width) where the backend left it.

        rendered: what torch.from_dlpack takes; its memory is shared, not copied.
        """
        if not isinstance(rendered, torch.Tensor):  # through DLPack it would lose record_stream()
            # A capsule is taken faster; on a GPU torch asks for it with its stream.
            rendered = from_dlpack(rendered if self.on_gpu else rendered.__dlpack__())
        pixels: torch.Tensor = rendered.permute(0, 3, 1, 2)
        return pixels

    @shown("hand over")
    def finish(self, images: torch.Tensor, offsets: NDArray[np.float32] | None) -> torch.Tensor:
        """uint8 crops of a CPU backend to the GPU, lighting added there in float32: float16.

        offsets: float32 (N, 3), or None where there is no lighting.
        """
        return lit(
            self._moved(images), None if offsets is None else self.numbers(offsets)
        ).half()

    def whole(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images of a CPU backend, as they are, on the device."""
        return self._moved(images)

    def settle(self) -> None:
        """Waits until the device has done all it was given: for measurements."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.on_gpu:
            return tensor
        if not tensor.is_pinned():
            # torch keeps the page-locked copy until it has been read, and then for the next one:
            # after the first steps nothing is allocated, and the host waits for nothing.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        moved = tensor.to(self.device, non_blocking=True)
        self._hold(tensor)
        return moved

    def _hold(self, tensor: torch.Tensor) -> None:
        """Keeps a backend's page-locked memory from being written to while it is copied."""
        event = torch.cuda.current_stream(self.device).record_event()
        self._being_copied.append((event, tensor))
        if len(self._being_copied) > MAX_BEING_COPIED:
            self._being_copied[0][0].synchronize()
        while self._being_copied and self._being_copied[0][0].query():
            self._being_copied.popleft()


def lit(images: torch.Tensor, lighting: torch.Tensor | None) -> torch.Tensor:
    """uint8 crops (N, 3, height, width) in float32 with their lighting, float32 (N, 3)."""
    pixels = images.float()
    if lighting is not None:
        pixels += lighting[:, :, None, None]
    return pixels
