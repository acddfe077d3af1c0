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
        self._raw = settings.encoding == "raw"
        self._waiting: deque[Work] = deque()  # submitted, not yet given to DALI
        self._running: deque[Work] = deque()  # given to DALI: their bytes must stay
        self._ended = False  # DALI's callback ran out of work: it wants a reset
        self._pipeline: Any = self._build()

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
        """Forgets all that was submitted; after an error the next step is rendered again."""
        self._waiting.clear()
        try:
            while self._running:
                self.take()
        except (RuntimeError, StopIteration):  # take() reported it; DALI needs a new pipeline
            self._running.clear()
            self._ended = False
            self._pipeline = self._build()

    def close(self) -> None:
        """Drops the pipeline and its memory."""
        self.clear()
        self._pipeline = None

    def _schedule(self) -> None:
        """Starts all that waits: DALI's first run, and the first after a reset, starts several."""
        if self._ended:
            self._pipeline.reset()
            self._ended = False
        while self._waiting and not self._ended:
            self._pipeline.schedule_run()

    def _next_inputs(self) -> list[NDArray[Any]]:
        """DALI's callback: the inputs of the next step, those that the graph uses."""
        if not self._waiting:
            self._ended = True
            raise StopIteration
        work = self._waiting.popleft()
        self._running.append(work)
        n = len(work.crop)
        data = work.encoded.data
        if self._raw:
            inputs: list[NDArray[Any]] = [data.reshape(n, SIZE_PX, SIZE_PX, 3)]
        else:
            inputs = [data, work.encoded.sizes]
        if not self._settings.full:
            offsets = np.zeros((n, 3), np.float32) if work.offsets is None else work.offsets
            position = work.crop[:, :2].astype(np.float32) / MAX_OFFSET_PX  # k/32: exact
            inputs += [position, np.ascontiguousarray(work.crop[:, 2]), -offsets]
        return inputs

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
        pixels: list[tuple[Any, int, str]] = [(types.UINT8, 3, "HWC")]
        encoded: list[tuple[Any, int, str]] = [(types.UINT8, 1, ""), (types.INT32, 1, "")]
        drawn: list[tuple[Any, int, str]] = [
            (types.FLOAT, 1, ""),  # position of the crop, 0..1
            (types.INT32, 0, ""),  # flip
            (types.FLOAT, 1, ""),  # minus the lighting offset
        ]
        kinds = (pixels if self._raw else encoded) + ([] if settings.full else drawn)
        inputs = fn.external_source(
            source=self._next_inputs,
            num_outputs=len(kinds),
            batch=True,
            no_copy=not (self._raw and settings.device is not None),  # .gpu() runs behind us
            dtype=[kind[0] for kind in kinds],
            ndim=[kind[1] for kind in kinds],
            layout=[kind[2] for kind in kinds],
        )
        if settings.full:
            return self._pixels(inputs, {})
        position, flip, negative_offset = inputs[-3:]
        window = {
            "crop": (CROP_PX, CROP_PX),
            "crop_pos_x": position[0],
            "crop_pos_y": position[1],
        }
        return fn.crop_mirror_normalize(
            self._pixels(inputs, window),
            mirror=flip,
            mean=negative_offset,
            std=[1.0, 1.0, 1.0],
            dtype=DTYPES[settings.dtype],
            output_layout="HWC",
        )

    def _pixels(self, inputs: Any, window: dict[str, Any]) -> Any:
        """The images, or the windows of them, uint8 HWC."""
        if not self._raw:
            return self._decode(fn.slice(inputs[0], start=[0], end=inputs[1], axes=[0]), window)
        on_gpu = self._settings.device is not None
        data = inputs[0].gpu() if on_gpu else inputs[0]
        return fn.crop(data, **window) if window else fn.copy(data)

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
