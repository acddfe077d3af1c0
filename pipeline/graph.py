"""The DALI graph: encoded bytes in; decode + crop, then mirror + lighting + cast in one kernel."""

from collections import deque
from importlib.metadata import distributions
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends import RenderSettings, Work
from pipeline.draws import CROP_PX, MAX_OFFSET_PX
from pipeline.images import SIZE_PX


def _refuse_two_builds() -> None:
    """ImportError where DALI's CUDA 12 and CUDA 13 wheels are both installed: they clash."""
    names = {dist.name or "" for dist in distributions()}
    builds = {name for name in names if name.startswith("nvidia-dali-cuda")}
    if len(builds) > 1:
        raise ImportError(
            f"{' and '.join(sorted(builds))} are both installed and clash; pip uninstall both, "
            "then install the one for your driver (README, CUDA 12)"
        )


_refuse_two_builds()

from nvidia.dali import fn, types  # noqa: E402  # only after the check above
from nvidia.dali.pipeline import Pipeline  # noqa: E402

DTYPES: dict[type[np.generic], Any] = {
    np.uint8: types.UINT8,
    np.float16: types.FLOAT16,
    np.float32: types.FLOAT,
}


class DaliBackend:
    """Renders steps in a DALI pipeline, on the CPU or (settings.device) on a GPU."""

    def __init__(self, settings: RenderSettings) -> None:
        self._settings = settings
        self._waiting: deque[Work] = deque()  # submitted, not yet given to DALI
        self._running: deque[Work] = deque()  # given to DALI: their bytes must stay
        self._ended = False  # DALI's callback ran out of work: it wants a reset
        self._pipeline = self._build()

    def submit(self, work: Work) -> None:
        """Hands a step to DALI; the work's bytes must stay until it is taken."""
        self._waiting.append(work)
        if self._running and not self._ended:
            self._schedule()

    def take(self) -> Any:
        """The oldest step as a DALI tensor: NHWC, on the CPU or in the current CUDA stream."""
        if not self._running:
            self._schedule()
        stream = None
        if self._settings.device is not None:
            import torch

            stream = torch.cuda.current_stream(self._settings.device)
        (output,) = self._pipeline.share_outputs(cuda_stream=stream)
        self._pipeline.release_outputs()  # the tensor keeps its memory: dynamic executor
        self._running.popleft()
        return output.as_tensor()

    def clear(self) -> None:
        """Forgets all that was submitted."""
        self._waiting.clear()
        while self._running:
            self.take()

    def close(self) -> None:
        """Drops the pipeline and its memory."""
        self.clear()
        del self._pipeline

    def _schedule(self) -> None:
        """Starts all that waits: DALI's first run, and the first after a reset, starts several."""
        if self._ended:
            self._pipeline.reset()
            self._ended = False
        while self._waiting and not self._ended:
            self._pipeline.schedule_run()

    def _next_inputs(self) -> tuple[NDArray[Any], ...]:
        """DALI's callback: the inputs of the next step."""
        if not self._waiting:
            self._ended = True
            raise StopIteration
        work = self._waiting.popleft()
        self._running.append(work)
        n = len(work.crop)
        offsets = np.zeros((n, 3), np.float32) if work.offsets is None else work.offsets
        data = work.encoded.data
        if self._settings.encoding == "raw":
            data = data.reshape(n, SIZE_PX, SIZE_PX, 3)
        position = work.crop[:, :2].astype(np.float32) / MAX_OFFSET_PX  # k/32: exact
        flip = np.ascontiguousarray(work.crop[:, 2])
        return data, work.encoded.sizes, position, flip, -offsets

    def _build(self) -> Pipeline:
        settings = self._settings
        pipeline = Pipeline(
            batch_size=settings.max_rows,
            num_threads=settings.num_threads,
            device_id=settings.device,
            prefetch_queue_depth=settings.depth,
            exec_dynamic=True,
        )
        with pipeline:
            pipeline.set_outputs(self._graph())
        pipeline.build()
        return pipeline

    def _graph(self) -> Any:
        settings = self._settings
        raw = settings.encoding == "raw"
        data, size, position, flip, negative_offset = fn.external_source(
            source=self._next_inputs,
            num_outputs=5,
            batch=True,
            no_copy=True,
            dtype=[types.UINT8, types.INT32, types.FLOAT, types.INT32, types.FLOAT],
            ndim=[3 if raw else 1, 1, 1, 0, 1],
            layout=["HWC" if raw else "", "", "", "", ""],
        )
        window = {
            "crop": (CROP_PX, CROP_PX),
            "crop_pos_x": position[0],
            "crop_pos_y": position[1],
        }
        if not raw:
            encoded = fn.slice(data, start=[0], end=size, axes=[0])
            data = self._decode(encoded, {} if settings.full else window)
        elif settings.device is not None:
            data = data.gpu()
        if settings.full:
            return data
        if raw:
            data = fn.crop(data, **window)
        return fn.crop_mirror_normalize(
            data,
            mirror=flip,
            mean=negative_offset,
            std=[1.0, 1.0, 1.0],
            dtype=DTYPES[settings.dtype],
            output_layout="HWC",
        )

    def _decode(self, encoded: Any, window: dict[str, Any]) -> Any:
        decoder = fn.decoders.image_crop if window else fn.decoders.image
        if self._settings.device is None:
            return decoder(encoded, device="cpu", output_type=types.RGB, **window)
        return decoder(
            encoded,
            device="mixed",
            output_type=types.RGB,
            jpeg_fancy_upsampling=True,  # as libjpeg-turbo does; DALI's default differs at edges
            preallocate_width_hint=SIZE_PX,
            preallocate_height_hint=SIZE_PX,
            **window,
        )
