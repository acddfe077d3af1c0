"""From what a backend renders to tensors on the batch's device, without waiting for the device."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack


class Handover:
    """Gives tensors to the device named, such as "cpu", "cuda" or "cuda:1"."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda" and ":" not in device:
            # Tensors name their index, and a device without one never equals theirs.
            self.device = torch.device("cuda", torch.cuda.current_device())

    @property
    def on_gpu(self) -> bool:
        """Whether batches go to a GPU."""
        return self.device.type == "cuda"

    def numbers(self, values: NDArray[Any]) -> torch.Tensor:
        """An array as a tensor on the device."""
        return self._moved(torch.from_numpy(np.ascontiguousarray(values)))

    def pixels(self, rendered: Any) -> torch.Tensor:
        """(N, height, width, 3) of a backend, as (N, 3, height, width) where the backend left it.

        rendered: what torch.from_dlpack takes; its memory is shared, not copied.
        """
        # A capsule is taken faster; on a GPU torch asks for it with its stream.
        return from_dlpack(rendered if self.on_gpu else rendered.__dlpack__()).permute(0, 3, 1, 2)

    def finish(self, images: torch.Tensor, offsets: NDArray[np.float32] | None) -> torch.Tensor:
        """uint8 crops of a CPU backend to the GPU, lighting added there in float32: float16.

        offsets: float32 (N, 3), or None where there is no lighting.
        """
        pixels = self._moved(images).float()
        if offsets is not None:
            pixels += self.numbers(offsets)[:, :, None, None]
        return pixels.half()

    def whole(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images of a CPU backend, as they are, on the device."""
        return self._moved(images)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.on_gpu:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)
