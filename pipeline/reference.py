"""Decode, crop, flip and lighting in NumPy: the oracle of the tests, the backend without DALI."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import NDArray

from pipeline.backends import RenderSettings, Work
from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX, Pixels, decode_stored


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


class NumpyBackend:
    """Renders steps on threads, a few images per task; decoding releases the GIL."""

    def __init__(self, settings: RenderSettings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(settings.num_threads, thread_name_prefix="fullfeed-render")
        self._steps: deque[tuple[NDArray[np.generic], list[Future[None]]]] = deque()

    def submit(self, work: Work) -> None:
        """Begins to render a step; the work's bytes must stay until it is taken."""
        n = len(work.crop)
        side = self._settings.side_px
        out = np.empty((n, side, side, 3), self._settings.dtype)
        parts = np.array_split(np.arange(n), min(n, 4 * self._settings.num_threads))
        futures = [self._pool.submit(self._render, work, part, out) for part in parts]
        self._steps.append((out, futures))

    def take(self) -> NDArray[np.generic]:
        """The oldest step: (N, 224, 224, 3), or (N, 256, 256, 3) full; waits for it."""
        out, futures = self._steps.popleft()
        for future in futures:
            future.result()
        return out

    def clear(self) -> None:
        """Forgets what was submitted."""
        for _, futures in self._steps:
            wait(futures)
        self._steps.clear()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _render(self, work: Work, part: NDArray[np.int64], out: NDArray[np.generic]) -> None:
        for i in part.tolist():
            encoded = work.encoded.data[i, : work.encoded.sizes[i, 0]]
            if self._settings.encoding == "raw":
                pixels = encoded.reshape(SIZE_PX, SIZE_PX, 3)
            else:
                pixels = decode_stored(encoded.data)
            if self._settings.full:
                out[i] = pixels
            elif work.offsets is None:
                out[i] = cut(pixels, work.crop[i])
            else:
                np.add(cut(pixels, work.crop[i]), work.offsets[i], out=out[i], casting="unsafe")
