"""Decode, crop, flip and lighting in NumPy: the oracle of the tests, the backend without DALI."""

import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.backends import RenderSettings, Work
from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX, ImageError, Pixels, decode_stored
from pipeline.ranges import shown
from pipeline.reader import StepBytes
from pipeline.resident import HostStore


def _own_references() -> int:
    """What getrefcount says of a buffer that only a list holds; it differs between Pythons."""
    for buffer in [np.empty(0)]:
        return sys.getrefcount(buffer)
    raise AssertionError


def render(
    pixels: Pixels, crop: NDArray[np.int32], offset: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the network is shown of one image: float32 (224, 224, 3), 0..255 units plus lighting.

    pixels: (256, 256, 3) uint8. crop: (3,) = x, y, flip. offset: (3,), added to every pixel and
    never clamped (the paper, section 4.1).
    """
    return cut(pixels, crop).astype(np.float32) + offset


def cut(pixels: Pixels, crop: NDArray[np.int32]) -> Pixels:
    """The crop of an image, flipped where asked, as a view: (224, 224, 3) uint8."""
    x, y, flip = (int(value) for value in crop)
    view = pixels[y : y + CROP_PX, x : x + CROP_PX]
    return view[:, ::-1] if flip else view


def decoded(encoded: StepBytes, number: int, encoding: str) -> Pixels:
    """Image `number` of a step, uint8 (256, 256, 3); encoding: jpeg or raw."""
    data = encoded.data[number, : encoded.sizes[number, 0]]
    if encoding == "raw":
        return data.reshape(SIZE_PX, SIZE_PX, 3)
    return decode_stored(data.data)


def find_undecodable(encoded: StepBytes) -> tuple[int, str] | None:
    """Position and reason of the first JPEG of a step that is no image; None where all are."""
    for number, (data, size) in enumerate(zip(encoded.data, encoded.sizes[:, 0], strict=True)):
        try:
            decode_stored(data[:size].tobytes())
        except ImageError as error:
            return number, str(error)
    return None


def _render_into(
    out: NDArray[np.float32],
    pixels: Pixels,
    crop: NDArray[np.int32],
    offsets: NDArray[np.float32] | None,
    position: int,
) -> None:
    """What `render` gives, bit for bit, by OpenCV: five times as fast as NumPy's mixed types."""
    x, y, flip = crop.tolist()
    view = pixels[y : y + CROP_PX, x : x + CROP_PX]
    if flip:
        view = np.asarray(cv2.flip(view, 1), np.uint8)
    offset = [0.0] * 3 if offsets is None else offsets[position].tolist()
    scalar = np.array([*offset, 0.0])  # four numbers: OpenCV takes them for one pixel
    cv2.add(view, scalar, dst=out, dtype=cv2.CV_32F)


class NumpyBackend:
    """Renders steps on threads, a few images per task; decoding releases the GIL.

    store: keeps every image once it was decoded; those that are kept already are cut from there.
    """

    still_reading = None  # a step is taken when its bytes were read

    def __init__(self, settings: RenderSettings, store: HostStore | None = None) -> None:
        self._settings, self._store = settings, store
        self._pool = ThreadPoolExecutor(settings.num_threads, thread_name_prefix="fullfeed-render")
        self._own_references = _own_references()
        self._buffers: list[NDArray[np.generic]] = []
        self._steps: deque[tuple[NDArray[np.generic], list[Future[None]]]] = deque()

    def prepare(self, work: Work) -> Work:
        """As it is."""
        return work

    @shown("submit")
    def submit(self, prepared: Work) -> None:
        """Begins to render a step; the work's bytes must stay until it is taken."""
        work = prepared
        n = len(work.crop)
        out = self._free_buffer()[:n]
        parts = np.array_split(np.arange(n), min(n, 4 * self._settings.num_threads))
        futures = [self._pool.submit(self._render, work, part, out) for part in parts]
        self._steps.append((out, futures))

    @shown("take")
    def take(self) -> NDArray[np.generic]:
        """The oldest step: (N, 224, 224, 3), or (N, 256, 256, 3) full; waits for it."""
        out, futures = self._steps.popleft()
        # All end, also where one fails: the bytes that they read may be written over then.
        for error in [future.exception() for future in futures]:
            if error is not None:
                raise error
        return out

    def clear(self) -> None:
        """Forgets what was submitted."""
        for _, futures in self._steps:
            wait(futures)
        self._steps.clear()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _free_buffer(self) -> NDArray[np.generic]:
        """A batch's memory that nobody holds any more: fresh memory costs a tenth of decoding."""
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == self._own_references:  # no view, no tensor
                return buffer
        side = self._settings.side_px
        shape = (self._settings.max_rows, side, side, 3)
        self._buffers.append(self._settings.allocate(shape, self._settings.dtype))
        return self._buffers[-1]

    @shown("render")
    def _render(self, work: Work, part: NDArray[np.int64], out: NDArray[Any]) -> None:
        for i in part.tolist():
            pixels = self._pixels(work, i)
            if self._settings.full:
                out[i] = pixels
            elif self._settings.dtype is np.uint8:
                out[i] = cut(pixels, work.crop[i])
            else:
                _render_into(out[i], pixels, work.crop[i], work.offsets, i)

    def _pixels(self, work: Work, i: int) -> Pixels:
        """Image i of a step, whole."""
        if self._store is None:
            return decoded(work.encoded, i, self._settings.encoding)
        assert work.rows is not None and work.places is not None
        row, place = int(work.rows[i]), int(work.places[i])
        if place < 0:
            kept: Pixels = self._store.images[row]
            return kept
        pixels = decoded(work.encoded, place, self._settings.encoding)
        self._store.put(row, pixels)
        return pixels
