"""The backend of a loader: chosen, measured, driven; and the way of its pixels to the batch."""

import math
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backends import Backend, RenderSettings, Work, open_backend, open_first
from pipeline.calibrate import (
    Choice,
    alternatives,
    deeper,
    fastest,
    keep_settings,
    known_settings,
)
from pipeline.copies import pinned_empty
from pipeline.cores import cores_of_rank, ranks_here
from pipeline.device_store import DeviceStore, num_slots_of
from pipeline.driver import Driver
from pipeline.handover import Handover
from pipeline.loader_config import LoaderConfig
from pipeline.order import Rows
from pipeline.reader import StepBytes
from pipeline.reference import NumpyBackend
from pipeline.resident import (
    FORMATS,
    HostStore,
    Residence,
    find_residence,
    free_device_bytes,
    free_host_bytes,
    needs,
)
from pipeline.shared_memory import FOLDER
from pipeline.steps import Step

# What the ranks of one run on a machine have in common, and those of another run have not.
RUN_VARIABLES = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")


class Renderer:
    """The backend that a configuration asks for, open.

    name, reason: which it is, and why. settings: what it was opened with. encoding: of the stored
    images. handover: to the device of the batches. num_images, fingerprint: of the split, where
    its images are kept. ValueError where none can be opened.
    """

    def __init__(
        self,
        config: LoaderConfig,
        encoding: str,
        handover: Handover,
        *,
        num_images: int = 0,
        fingerprint: str = "",
    ) -> None:
        self._config, self._encoding, self._handover = config, encoding, handover
        self._store: HostStore | DeviceStore | None = None
        self._rivals: tuple[str, ...] = ()
        self._on_device = False
        self._num_ranks = ranks_here(config.local_world_size)
        self._apart = config.order == "local"  # each rank shows nothing but its own images
        self._residence = self._find_residence(num_images)
        try:
            self._open_resident(num_images, fingerprint)
        except ValueError as error:
            if config.resident != "auto":
                raise
            self._residence = Residence("none", str(error))
        if self._residence.where == "none":
            self._open_backend()

    def _find_residence(self, num_images: int) -> Residence:
        asked, device = self._config.resident, self._handover.device
        if asked == "none":
            return Residence("none", "")
        ahead = self._settings_of("device")
        needed = needs(
            num_images,
            on_gpu=self._handover.on_gpu,
            num_ranks=self._config.world_size if self._apart else self._num_ranks,
            image_bytes=math.prod(FORMATS[self._config.resident_format]),
            apart=self._apart,
            num_ahead=num_slots_of(ahead) * ahead.max_rows,
        )
        return find_residence(
            asked,
            needed,
            free_device_bytes=free_device_bytes(device, self._config.max_rows),
            free_host_bytes=free_host_bytes(self._num_ranks),
        )

    def _open_resident(self, num_images: int, fingerprint: str) -> None:
        """Opens the backend that keeps images where the residence says."""
        where, num_ranks, rank = self._residence.where, self._num_ranks, self._config.rank
        image_format = self._config.resident_format
        host: HostStore | None = None
        if where == "host" or (where == "device" and num_ranks > 1 and not self._apart):
            name = f"{fingerprint} {self._config.split}"
            host = _host_store(num_images, num_ranks, name, image_format)
        self.name, self.reason = "numpy", "each image is decoded once"
        if where == "host":
            assert host is not None
            self._store, self.settings = host, self._settings_of("numpy")
            self.backend = _driven(NumpyBackend(self.settings, host), self.settings)
        elif where == "device":
            self._on_device, self.settings = True, self._settings_of("device")
            if self._apart:
                num_ranks = self._config.world_size
            self._store = self.backend = DeviceStore(
                self.settings,
                num_images,
                rank=rank % num_ranks,
                num_ranks=num_ranks,
                host=host,
                image_format=image_format,
            )

    def _open_backend(self) -> None:
        opened = open_first(
            self._config.backend,
            self._settings_of,
            on_gpu=self._handover.on_gpu,
            encoding=self._encoding,
        )
        self.name, self.reason, self.settings = opened.name, opened.reason, opened.settings
        self._rivals = opened.rivals
        self._on_device = opened.name == "dali-gpu"
        self.backend = _driven(opened.backend, opened.settings)

    @property
    def hw_decoder_load(self) -> float | None:
        """The share of images a GPU's JPEG engine decodes, 0..1; None with another decoder."""
        decodes = self.name == "dali-gpu" and self._encoding == "jpeg"
        return self.settings.hw_decoder_load if decodes else None

    @property
    def is_resident(self) -> bool:
        """Whether decoded images are kept."""
        return self._store is not None

    @property
    def description(self) -> str:
        """The backend, why it was chosen, its threads and its decoder's load, for a person."""
        threads = self.settings.num_threads
        threads_told = "1 thread" if threads == 1 else f"{threads} threads"
        parts = [f"{self.name} ({self.reason})", threads_told]
        if self.hw_decoder_load is not None:
            parts.append(f"hw_decoder_load {self.hw_decoder_load}")
        if self._residence.where != "none":
            parts.append(f"resident: {self._residence.reason}")
        elif self._residence.reason:  # asked for, where there is room
            parts.append(f"not resident: {self._residence.reason}")
        return ", ".join(parts)

    def calibrate(self, work: Work) -> None:
        """Opens the fastest backend of those with the same pixels, as it is fastest.

        With which threads, decoder load and depth: known, or else measured and kept. work: real
        images.
        """
        self.backend.close()
        exact = self._config.exact
        known = known_settings(self.settings, exact=exact)
        found = self._measure(work) if known is None else Choice(self.name, known)
        if known is None:
            keep_settings(self.settings, found.settings, exact=exact)
        if self._rivals:
            several = " and ".join([self.name, *self._rivals])
            self.reason = f"the fastest of {several} here, which give the same pixels"
        self.name, self.settings = found.backend, found.settings
        self.backend = _open_driven(found)

    def _measure(self, work: Work) -> Choice:
        """The fastest of all that may be chosen, first as it is, then with more steps ahead."""
        settle, names = self._handover.settle, [self.name, *self._rivals]
        settings = alternatives(self.settings, exact=self._config.exact)
        choices = [Choice(name, one) for name in names for one in settings]
        found = fastest(choices, _open_driven, work, settle)
        choices = [Choice(found.backend, one) for one in deeper(found.settings)]
        return fastest(choices, _open_driven, work, settle)

    def unread(self, rows: Rows) -> NDArray[np.int64]:
        """The positions in a step, of these index rows, of the images that are to be read."""
        if self._store is None:
            return np.arange(len(rows))
        return np.flatnonzero(~self._store.known(rows))

    def work(self, step: Step, encoded: StepBytes, unread: NDArray[np.int64]) -> Work:
        """What the backend is to do for a step; encoded: its images at the positions `unread`."""
        offsets = None if self.settings.dtype == np.uint8 else step.offsets
        if self._store is None:
            return Work(encoded, step.crop, offsets)
        places = np.full(len(step.rows), -1)
        places[unread] = np.arange(len(unread))
        return Work(encoded, step.crop, offsets, step.rows, places)

    def images(self, rendered: Any, offsets: NDArray[np.float32] | None) -> torch.Tensor:
        """A step's images as a batch has them, (N, 3, height, width) on its device.

        rendered: what the backend gave; None of a step without images, which DALI refuses to
        render. offsets: of the step's lighting, float32 (N, 3) or None.
        """
        if rendered is None:
            side_px = self.settings.side_px
            images = self._handover.pixels(np.empty((0, side_px, side_px, 3), self.settings.dtype))
            if self._on_device:
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
        return self._handover.on_gpu and not self._on_device

    def _settings_of(self, backend: str) -> RenderSettings:
        """What to open a backend of this name with; "device": one that keeps images there."""
        config = self._config
        on_gpu = backend in ("dali-gpu", "device")
        dtype: type[np.generic] = np.float16 if on_gpu else np.float32
        leaves_lighting = config.lighting_apart or (self._handover.on_gpu and not on_gpu)
        if config.views == "full" or leaves_lighting:
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


def _host_store(num_images: int, num_ranks: int, name: str, image_format: str) -> HostStore:
    """The store of decoded images of this rank, or of all those of this run on this machine.

    ValueError where there is not so much memory for files, which is what ranks share.
    """
    if num_ranks == 1:
        return HostStore(num_images, shared=None, image_format=image_format)
    run = " ".join(os.environ.get(variable, "") for variable in RUN_VARIABLES)
    try:
        return HostStore(
            num_images,
            shared=f"{name} {run} {os.getppid()}",
            num_users=num_ranks,
            image_format=image_format,
        )
    except OSError as error:
        raise ValueError(
            f"--resident: {num_ranks} ranks cannot share their images in {FOLDER} "
            f"({error.strerror}); give it more room (docker run --shm-size), or leave it out"
        ) from error


def _open_driven(choice: Choice) -> Backend:
    return _driven(open_backend(choice.backend, choice.settings), choice.settings)


def _driven(backend: Backend, settings: RenderSettings) -> Backend:
    """The backend; one that works in host memory, driven by a thread of its own."""
    return Driver(backend) if settings.device is None else backend
