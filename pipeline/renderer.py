"""The backend of a loader: chosen, measured, driven; and the way of its pixels to the batch."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backends import Backend, RenderSettings, Work, open_backend, open_first
from pipeline.calibrate import alternatives, fastest
from pipeline.copies import pinned_empty
from pipeline.cores import cores_of_rank
from pipeline.driver import Driver
from pipeline.handover import Handover
from pipeline.loader_config import LoaderConfig


class Renderer:
    """The backend that a configuration asks for, open.

    name, reason: which it is, and why. settings: what it was opened with. encoding: of the stored
    images. handover: to the device of the batches. ValueError where none can be opened.
    """

    def __init__(self, config: LoaderConfig, encoding: str, handover: Handover) -> None:
        self._config, self._encoding, self._handover = config, encoding, handover
        opened = open_first(
            config.backend, self._settings_of, on_gpu=handover.on_gpu, encoding=encoding
        )
        self.name, self.reason, self.settings = opened.name, opened.reason, opened.settings
        self.backend = _driven(opened.backend, opened.settings)

    @property
    def hw_decoder_load(self) -> float | None:
        """The share of images a GPU's JPEG engine decodes, 0..1; None with another decoder."""
        decodes = self.name == "dali-gpu" and self._encoding == "jpeg"
        return self.settings.hw_decoder_load if decodes else None

    @property
    def description(self) -> str:
        """The backend, why it was chosen, its threads and its decoder's load, for a person."""
        threads = self.settings.num_threads
        threads_told = "1 thread" if threads == 1 else f"{threads} threads"
        parts = [f"{self.name} ({self.reason})", threads_told]
        if self.hw_decoder_load is not None:
            parts.append(f"hw_decoder_load {self.hw_decoder_load}")
        return ", ".join(parts)

    def calibrate(self, work: Work) -> None:
        """Opens the backend again with the fastest threads and decoder load; work: real images."""
        self.backend.close()
        choices = alternatives(self.settings, exact=self._config.exact)
        open_one = partial(open_backend, self.name)
        self.settings = fastest(choices, open_one, work, self._handover.settle)
        self.backend = _driven(open_one(self.settings), self.settings)

    def work_offsets(self, offsets: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """What the backend is to add of a step's lighting."""
        return None if self._finishes_on_gpu else offsets

    def images(self, rendered: Any, offsets: NDArray[np.float32] | None) -> torch.Tensor:
        """A step's images as a batch has them, (N, 3, height, width) on its device.

        rendered: what the backend gave; None of a step without images, which DALI refuses to
        render. offsets: of the step's lighting, float32 (N, 3) or None.
        """
        if rendered is None:
            side_px = self.settings.side_px
            images = self._handover.pixels(np.empty((0, side_px, side_px, 3), self.settings.dtype))
            if self.name == "dali-gpu":
                images = images.to(self._handover.device)
        else:
            images = self._handover.pixels(rendered)
        if not self._finishes_on_gpu:
            return images
        if self.settings.full:
            return self._handover.whole(images)
        return self._handover.finish(images, offsets)

    @property
    def _finishes_on_gpu(self) -> bool:
        """Whether a CPU backend feeds a GPU: it sends uint8, lighting is added there."""
        return self._handover.on_gpu and self.name != "dali-gpu"

    def _settings_of(self, backend: str) -> RenderSettings:
        """What to open a backend of this name with."""
        config = self._config
        on_gpu = backend == "dali-gpu"
        dtype: type[np.generic] = np.float16 if on_gpu else np.float32
        if config.views == "full" or (self._handover.on_gpu and not on_gpu):
            dtype = np.uint8
        return RenderSettings(
            encoding=self._encoding,
            max_rows=config.max_rows,
            num_threads=config.threads or cores_of_rank(config.local_world_size),
            depth=config.prefetch,
            full=config.views == "full",
            dtype=dtype,
            device=self._handover.device.index if on_gpu else None,
            hw_decoder_load=0.0 if config.exact else config.hw_decoder_load,
            allocate=pinned_empty if self._handover.on_gpu and not on_gpu else np.empty,
        )


def _driven(backend: Backend, settings: RenderSettings) -> Backend:
    """The backend; one that works in host memory, driven by a thread of its own."""
    return Driver(backend) if settings.device is None else backend
