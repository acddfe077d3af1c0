"""What turns encoded bytes into pixels: the interface, and the choice of implementation."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX
from pipeline.order import Rows
from pipeline.reader import Allocate, StepBytes, Wait

BACKENDS = ("dali-gpu", "dali-cpu", "numpy")
HW_DECODER_LOAD = 0.65  # DALI's default; pipeline/calibrate.py measures a better one


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """What every step of a loader has in common, for the backend that renders it.

    encoding: of the stored images, jpeg or raw. full: whole images, (N, 256, 256, 3) uint8,
    instead of 224-px crops. dtype: of the pixels that come out; uint8 carries no lighting.
    num_threads: of all pools together. depth: steps rendered ahead. device: index of the GPU of
    dali-gpu. hw_decoder_load: share of the images its JPEG engine decodes, 0..1, where it has one.
    allocate: where numpy's results lie, such as page-locked memory for a GPU to copy from.
    """

    encoding: str
    max_rows: int
    num_threads: int
    depth: int
    full: bool
    dtype: type[np.generic]
    device: int | None = None
    hw_decoder_load: float = HW_DECODER_LOAD
    allocate: Allocate = np.empty

    @property
    def side_px(self) -> int:
        """Width and height of what comes out."""
        return SIZE_PX if self.full else CROP_PX


@dataclass(frozen=True)
class Work:
    """A step to render: N encoded images, crop int32 (N, 3), offsets float32 (N, 3) or None.

    Where decoded images are kept, `encoded` has only those that are not yet. rows: int64 (N,),
    of the index. places: int64 (N,), of each image in `encoded`, -1 where it is kept.
    """

    encoded: StepBytes
    crop: NDArray[np.int32]
    offsets: NDArray[np.float32] | None
    rows: Rows | None = None
    places: NDArray[np.int64] | None = None


class Backend(Protocol):
    """Renders steps in the order they were submitted, ahead of their being taken."""

    @property
    def still_reading(self) -> Wait | None:
        """Waits until nobody reads the bytes of the step last taken; None where nobody does."""

    def prepare(self, work: Work) -> Any:
        """The work in the backend's own form; its bytes may still be on their way.

        May be called in another thread than the rest.
        """

    def submit(self, prepared: Any) -> None:
        """Begins to render; its bytes must stay until the step is taken, and `still_reading`."""

    def take(self) -> Any:
        """The oldest step, NHWC, as what torch.from_dlpack accepts; waits for it."""

    def clear(self) -> None:
        """Forgets all that was submitted."""

    def close(self) -> None:
        """Frees threads and memory."""


@dataclass(frozen=True)
class Opened:
    """A backend that works here. reason: why this one, and why none of those before it.

    rivals: names of those after it that give the same pixels, and so might be taken instead.
    """

    backend: Backend
    name: str
    settings: RenderSettings
    reason: str
    rivals: tuple[str, ...]


def open_first(
    asked: str,
    settings_of: Callable[[str], RenderSettings],
    *,
    on_gpu: bool,
    encoding: str,
) -> Opened:
    """Opens the backend asked for, or with "auto" the first that works here.

    settings_of: what to open a backend of that name with. on_gpu: whether batches go to a GPU.
    encoding: of the stored images. ValueError with the reasons where none can be opened.
    """
    reasons: list[str] = []
    found = candidates(asked, on_gpu=on_gpu, encoding=encoding)
    for number, (name, reason) in enumerate(found):
        settings = settings_of(name)
        try:
            backend = open_backend(name, settings)
        except ValueError as error:
            if asked != "auto":
                raise
            reasons.append(f"{name} does not work here ({error})")
        else:
            later = () if name == "dali-gpu" else found[number + 1 :]
            rivals = tuple(rival for rival, _ in later)
            return Opened(backend, name, settings, "; ".join([*reasons, reason]), rivals)
    raise ValueError("; ".join(reasons))


def candidates(asked: str, *, on_gpu: bool, encoding: str) -> list[tuple[str, str]]:
    """The backends to try, best first, each with the reason; `asked` is one of BACKENDS or "auto".

    on_gpu: whether batches go to a GPU. encoding: of the stored images; raw ones need no decoder,
    so dali-gpu renders them without DALI. ValueError where the one asked for cannot work here.
    """
    if asked not in (*BACKENDS, "auto"):
        raise ValueError(f"backend must be auto or one of {', '.join(BACKENDS)}, not {asked!r}")
    has_dali = _has_dali()
    past_dali = on_gpu and encoding == "raw"
    if asked == "dali-gpu" and not on_gpu:
        raise ValueError("backend dali-gpu needs a GPU to render on; use --backend auto")
    if asked.startswith("dali") and not has_dali and not (asked == "dali-gpu" and past_dali):
        raise ValueError(
            f"backend {asked} needs NVIDIA DALI: pip install 'fullfeed[dali]' (Linux), or use "
            "--backend numpy"
        )
    if asked != "auto":
        return [(asked, "asked for")]
    found = []
    if past_dali:
        found.append(("dali-gpu", "raw images go to a GPU as they are, past DALI"))
    elif on_gpu and has_dali:
        found.append(("dali-gpu", "DALI is installed, batches go to a GPU"))
    if has_dali:
        stay = "DALI on the CPU" if on_gpu else "DALI is installed, batches stay on the CPU"
        found.append(("dali-cpu", stay))
    return [*found, ("numpy", "without DALI" if has_dali else "DALI is not installed")]


def open_backend(name: str, settings: RenderSettings) -> Backend:
    """Builds the backend `name`; DALI is imported here and only where it is used.

    ValueError with the reason where DALI or its driver does not work, or a GPU has no room.
    """
    if name == "numpy":
        from pipeline.reference import NumpyBackend

        return NumpyBackend(settings)
    try:
        if settings.encoding == "raw" and settings.device is not None:
            from pipeline.raw import RawBackend

            return RawBackend(settings)
        from pipeline.graph import DaliBackend

        return DaliBackend(settings)
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"backend {name} cannot be opened: {reason}") from error


def _has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package `nvidia` at all
        return False
