"""The DALI graph: encoded bytes in; decode + crop, then mirror + lighting + cast in one kernel."""

import weakref
from collections import deque
from importlib.metadata import distributions
from typing import Any

import numpy as np

from pipeline.backends import RenderSettings, Work
from pipeline.draws import CROP_PX, MAX_OFFSET_PX
from pipeline.images import SIZE_PX
from pipeline.ranges import shown


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

from nvidia.dali import backend, fn, types  # noqa: E402  # only after the check above
from nvidia.dali.pipeline import Pipeline  # noqa: E402
from nvidia.dali.tensors import TensorListCPU  # noqa: E402

# What a step's numbers are, 32 bits each, (N, NUM_NUMBERS): one input is fed faster than four.
SIZE, FLIP = 0, 1  # int32: bytes; 0 or 1
POSITION = slice(2, 4)  # float32: of the crop, x and y, 0..1
OFFSET = slice(4, 7)  # float32: minus what lighting adds
NUM_NUMBERS = 7
Inputs = list[TensorListCPU]  # the images' bytes, and the numbers

# What nvJPEG keeps of an image, per thread: 16-bit coefficients of three planes, 384 KiB, and on
# the device the planes, 192 KiB. DALI's 16 and 8 MiB are meant for photographs of any size.
DECODER_PADDING_BYTES = 1 << 20
_dali: Any = backend  # DALI's type stubs leave out part of it
DTYPES: dict[type[np.generic], Any] = {
    np.uint8: types.UINT8,
    np.float16: types.FLOAT16,
    np.float32: types.FLOAT,
}


def decoder_arguments(hw_decoder_load: float) -> dict[str, Any]:
    """What the GPU's JPEG decoder is told, by the names of DALI's decoders with device="mixed".

    hw_decoder_load: share of a batch that the GPU's JPEG engine takes, 0..1; the rest is decoded
    on threads (Huffman) and by CUDA kernels, whose pixels may differ from the engine's.
    """
    return {
        "hw_decoder_load": hw_decoder_load,
        "jpeg_fancy_upsampling": True,  # as libjpeg-turbo; DALI's default differs at colour edges
        "preallocate_width_hint": SIZE_PX,  # of the engine, which multiplies it by the batch
        "preallocate_height_hint": SIZE_PX,
        "device_memory_padding": DECODER_PADDING_BYTES,
        "host_memory_padding": DECODER_PADDING_BYTES,
        # Bound to the cores nearest its GPU, the threads of two ranks would share a few of them.
        "affine": False,
    }


def copied(rows: Any, sizes: Any) -> Any:
    """The first sizes[0] bytes of each row, as a DALI node: copied by the CPU, in DALI's threads.

    A decoder on a GPU reads this copy, also when its step has long been taken: the rows themselves
    are read no more once it begins.
    """
    return fn.slice(rows, start=[0], end=sizes, axes=[0])


class DaliBackend:
    """Renders steps in a DALI pipeline, on the CPU or (settings.device) on a GPU.

    On a GPU a step is handed over by stream, without a copy and without waiting for the device:
    it may be used in what was torch's current stream when it was taken, and in any stream that
    waits for that one. DALI writes to its memory again only once the tensor is gone and all work
    that the device had been given by then is done (DALI 2.4: the deleter of its DLPack tensors),
    whatever stream that work is in; so nobody needs to call `record_stream`.
    """

    # On the CPU a step is taken when all is done, on a GPU when its bytes were `copied` at least.
    still_reading = None

    def __init__(self, settings: RenderSettings) -> None:
        assert settings.device is None or settings.encoding == "jpeg"
        self._settings = settings
        self._raw = settings.encoding == "raw"
        # A JPEG ends by itself: on the CPU it need not be cut out of its row, which copies it. A
        # GPU's decoder would be sent the rest of the row as well.
        self._cuts_out = not self._raw and settings.device is not None
        self._num_inputs = 1 if settings.full and not self._cuts_out else 2
        self._waiting: deque[Inputs] = deque()  # submitted, not yet given to DALI
        self._running: deque[Inputs] = deque()  # given to DALI: their bytes must stay
        self._ended = False  # DALI's callback ran out of work: it wants a reset
        self._pipeline: Any = self._build()

    def prepare(self, work: Work) -> Inputs:
        """The step as DALI's lists of tensors: they share its memory, and are costly to make."""
        n = len(work.crop)
        data = work.encoded.data
        if self._raw:
            images = TensorListCPU(data.reshape(n, SIZE_PX, SIZE_PX, 3), "HWC")
        else:
            images = TensorListCPU(data, "")
        numbers = np.zeros((n, NUM_NUMBERS), np.int32)
        floats = numbers.view(np.float32)
        numbers[:, SIZE] = work.encoded.sizes[:, 0]
        numbers[:, FLIP] = work.crop[:, 2]
        floats[:, POSITION] = work.crop[:, :2] / MAX_OFFSET_PX  # k/32: exact
        if work.offsets is not None:
            floats[:, OFFSET] = -work.offsets
        return [images, TensorListCPU(numbers, "")][: self._num_inputs]

    @shown("submit")
    def submit(self, prepared: Inputs) -> None:
        """Hands a step to DALI; the work's bytes must stay until it is taken."""
        self._waiting.append(prepared)
        if self._running and not self._ended:
            self._schedule()

    @shown("take")
    def take(self) -> Any:
        """The oldest step as a DALI tensor: NHWC, on the CPU or in the current CUDA stream."""
        if not self._running:
            self._schedule()
        # This releases the step before; its tensor keeps its memory: dynamic executor.
        if self._settings.device is None:
            (output,) = self._pipeline.outputs()
        else:
            import torch

            with torch.cuda.device(self._settings.device):
                (output,) = self._pipeline.outputs(cuda_stream=torch.cuda.current_stream())
        self._running.popleft()
        if not self._running:
            self._pipeline.release_outputs()  # holds no step while it rests
        return output.as_tensor()

    def clear(self) -> None:
        """Forgets all that was submitted; after an error the next step is rendered again.

        On a GPU gives back what DALI's pools of this process hold unused: a loader is cleared when
        an epoch begins, so training and validation, taking turns, are bounded together.
        """
        self._waiting.clear()
        try:
            while self._running:
                self.take()
        except (RuntimeError, StopIteration):  # take() reported it; DALI needs a new pipeline
            # The old one may still read its inputs, and lives as long as anybody holds the error.
            weakref.finalize(self._pipeline, self._running.clear).atexit = False
            self._pipeline, self._running = None, deque()
            self._ended = False
            self._pipeline = self._build()
        if self._settings.device is not None:
            _dali.ReleaseUnusedMemory()

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

    def _next_inputs(self) -> Inputs:
        """DALI's callback: the inputs of the next step."""
        if not self._waiting:
            self._ended = True
            raise StopIteration
        self._running.append(self._waiting.popleft())
        return self._running[-1]

    def _build(self) -> Pipeline:
        settings = self._settings
        # A GPU's decoder has a pool of its own, as large as the pipeline's: each gets half.
        num_pools = 1 if settings.device is None else 2
        pipeline = Pipeline(
            batch_size=settings.max_rows,
            num_threads=max(1, settings.num_threads // num_pools),
            device_id=settings.device,
            prefetch_queue_depth=settings.depth,
            exec_dynamic=True,
            set_affinity=False,  # as the decoder's
        )
        with pipeline:
            pipeline.set_outputs(self._graph())
        pipeline.build()
        return pipeline

    def _graph(self) -> Any:
        settings = self._settings
        images, *numbers = fn.external_source(
            source=self._next_inputs,
            num_outputs=self._num_inputs,
            batch=True,
            no_copy=True,
            dtype=[types.UINT8, types.INT32][: self._num_inputs],
            ndim=[3 if self._raw else 1, 1][: self._num_inputs],
        )
        if self._cuts_out:
            images = copied(images, numbers[0][SIZE : SIZE + 1])
        if settings.full:
            return self._pixels(images, {})
        floats = fn.reinterpret(numbers[0], dtype=types.FLOAT)
        x, y = (floats[i] for i in range(POSITION.start, POSITION.stop))
        window = {"crop": (CROP_PX, CROP_PX), "crop_pos_x": x, "crop_pos_y": y}
        pixels, left = (images, window) if self._raw else (self._pixels(images, window), {})
        return fn.crop_mirror_normalize(
            pixels,
            **left,  # of raw images: nothing is copied to cut it out
            mirror=numbers[0][FLIP],
            mean=floats[OFFSET],  # minus the lighting
            std=[1.0, 1.0, 1.0],
            dtype=DTYPES[settings.dtype],
            output_layout="HWC",
        )

    def _pixels(self, images: Any, window: dict[str, Any]) -> Any:
        """The images, or the windows of them, uint8 HWC."""
        if self._raw:
            return fn.copy(images)
        decoder = fn.decoders.image_crop if window else fn.decoders.image
        if self._settings.device is None:
            return decoder(images, device="cpu", output_type=types.RGB, **window)
        arguments = decoder_arguments(self._settings.hw_decoder_load)
        return decoder(images, device="mixed", output_type=types.RGB, **arguments, **window)
