"""Every backend renders the oracle's pixels, step by step, and is chosen with a reason."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pipeline.reference
from pipeline.backends import (
    Backend,
    RenderSettings,
    Work,
    candidates,
    open_backend,
    open_first,
)
from pipeline.images import (
    RAW_HEADER,
    ImageError,
    ImageFormat,
    Pixels,
    decode_stored,
    encode,
    fit,
)
from pipeline.raw import RawBackend
from pipeline.reader import StepBytes
from pipeline.reference import render
from tests.conftest import photograph

RAW_BACKEND = "raw on the CPU"  # the code of raw images on a GPU
CPU_BACKENDS = ("numpy", "dali-cpu")
CASES = [(name, encoding) for name in CPU_BACKENDS for encoding in ("jpeg", "raw")]
CASES.append((RAW_BACKEND, "raw"))
CORNERS = [[0, 0, 0], [32, 0, 1], [0, 32, 1], [32, 32, 0]]  # x, y, flip


@dataclass(frozen=True)
class Step:
    """Encoded images with draws, and what the network is to be shown of them."""

    work: Work
    pixels: list[Pixels]
    shown: list[NDArray[np.float32]]


def step(encoding: str, count: int, seed: int = 0) -> Step:
    """Images of extreme and random crops, flips and offsets."""
    rng = np.random.default_rng(seed)
    images = [fit(photograph(rng, 300, 256)) for _ in range(count)]
    stored = [encode(image, ImageFormat(encoding=encoding)) for image in images]
    pixels = [decode_stored(data) for data in stored]
    bodies = [data[len(RAW_HEADER) :] if encoding == "raw" else data for data in stored]
    longest = max(len(body) for body in bodies)
    data = np.full((count, longest), 0xAA, np.uint8)  # what lies behind an image is not its part
    for row, body in zip(data, bodies, strict=True):
        row[: len(body)] = np.frombuffer(body, np.uint8)
    sizes = np.array([[len(body)] for body in bodies], np.int32)
    drawn = [[*rng.integers(0, 33, 2).tolist(), int(rng.integers(0, 2))] for _ in images]
    crop = np.array((CORNERS + drawn)[:count], np.int32)
    offsets = rng.normal(0, 20, (count, 3)).astype(np.float32)
    shown = [render(p, c, o) for p, c, o in zip(pixels, crop, offsets, strict=True)]
    return Step(Work(StepBytes(data, sizes), crop, offsets), pixels, shown)


def settings(encoding: str, **changes: Any) -> RenderSettings:
    chosen: dict[str, Any] = {
        "max_rows": 6,
        "num_threads": 2,
        "depth": 2,
        "full": False,
        "dtype": np.float32,
    }
    return RenderSettings(encoding=encoding, **{**chosen, **changes})


def open_here(name: str, settings: RenderSettings) -> Backend:
    """A backend that needs no GPU."""
    return RawBackend(settings) if name == RAW_BACKEND else open_backend(name, settings)


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend that needs no GPU, and how images are stored."""
    name, encoding = request.param
    if name.startswith("dali"):
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    return name, encoding


@pytest.fixture
def name(case: tuple[str, str]) -> str:
    """The name of the backend."""
    return case[0]


@pytest.fixture
def encoding(case: tuple[str, str]) -> str:
    """How images are stored."""
    return case[1]


@pytest.fixture
def backend(name: str, encoding: str) -> Iterator[Backend]:
    """A backend of float32 crops, at most six images a step."""
    opened = open_here(name, settings(encoding))
    yield opened
    opened.close()


def taken(backend: Backend) -> NDArray[Any]:
    return np.array(np.from_dlpack(backend.take()))


def test_crops_at_all_corners_flips_and_lighting_are_bit_equal_to_the_oracle(
    backend: Backend, encoding: str
) -> None:
    wanted = step(encoding, 6)
    backend.submit(backend.prepare(wanted.work))
    found = taken(backend)
    assert found.dtype == np.float32 and found.shape == (6, 224, 224, 3)
    assert found.tobytes() == np.stack(wanted.shown).tobytes()


def test_no_offsets_leave_the_pixels_as_they_are(backend: Backend, encoding: str) -> None:
    wanted = step(encoding, 3)
    backend.submit(backend.prepare(Work(wanted.work.encoded, wanted.work.crop, None)))
    zero = np.zeros(3, np.float32)
    expected = [
        render(p, c, zero) for p, c in zip(wanted.pixels, wanted.work.crop, strict=True)
    ]
    np.testing.assert_array_equal(taken(backend), np.stack(expected))


def test_steps_of_any_size_come_in_the_order_submitted(backend: Backend, encoding: str) -> None:
    steps = [step(encoding, count, seed) for seed, count in enumerate((6, 1, 3, 6, 2))]
    found = []
    backend.submit(backend.prepare(steps[0].work))
    for following in steps[1:]:  # two at a time, as the depth allows
        backend.submit(backend.prepare(following.work))
        found.append(taken(backend))
    found.append(taken(backend))
    for images, wanted in zip(found, steps, strict=True):
        np.testing.assert_array_equal(images, np.stack(wanted.shown))


def test_what_was_taken_is_not_overwritten_by_later_steps(backend: Backend, encoding: str) -> None:
    first = step(encoding, 6)
    backend.submit(backend.prepare(first.work))
    held = backend.take()
    for seed in range(1, 5):
        backend.submit(backend.prepare(step(encoding, 6, seed).work))
        backend.take()
    np.testing.assert_array_equal(np.from_dlpack(held), np.stack(first.shown))


@pytest.mark.parametrize("num_submitted", [0, 1, 2])
def test_clear_forgets_and_the_next_step_is_right(
    backend: Backend, encoding: str, num_submitted: int
) -> None:
    for round_ in range(2):
        for seed in range(num_submitted):
            backend.submit(backend.prepare(step(encoding, 4, seed).work))
        backend.clear()
        wanted = step(encoding, 5, 9 + round_)
        backend.submit(backend.prepare(wanted.work))
        np.testing.assert_array_equal(taken(backend), np.stack(wanted.shown))


def test_full_views_are_the_stored_pixels(name: str, encoding: str) -> None:
    backend = open_here(name, settings(encoding, full=True, dtype=np.uint8))
    for count in (6, 2):
        wanted = step(encoding, count)
        backend.submit(backend.prepare(wanted.work))
        found = taken(backend)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, np.stack(wanted.pixels))
    backend.close()


def test_uint8_crops_carry_no_lighting(name: str, encoding: str) -> None:
    backend = open_here(name, settings(encoding, dtype=np.uint8))
    wanted = step(encoding, 5)
    backend.submit(backend.prepare(Work(wanted.work.encoded, wanted.work.crop, None)))
    found = taken(backend)
    zero = np.zeros(3, np.float32)
    expected = [
        render(p, c, zero) for p, c in zip(wanted.pixels, wanted.work.crop, strict=True)
    ]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack(expected))
    backend.close()


@pytest.mark.parametrize("case", [(name, "jpeg") for name in CPU_BACKENDS], indirect=True)
def test_an_image_that_cannot_be_decoded_is_an_error_that_ends_nothing_else(
    backend: Backend, encoding: str
) -> None:
    wanted = step(encoding, 4)
    damaged = StepBytes(np.zeros((3, 640), np.uint8), np.full((3, 1), 640, np.int32))
    backend.submit(backend.prepare(Work(damaged, wanted.work.crop[:3], None)))
    backend.submit(backend.prepare(wanted.work))
    with pytest.raises((RuntimeError, ValueError), match=r"decod|damaged"):
        backend.take()
    backend.clear()
    backend.submit(backend.prepare(wanted.work))
    np.testing.assert_array_equal(taken(backend), np.stack(wanted.shown))


def test_numpy_raises_only_when_nothing_reads_the_step_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted, ended = step("jpeg", 2), threading.Event()

    def decode_one_slowly(encoded: bytes) -> Pixels:
        if bytes(encoded[:2]) == bytes(2):
            raise ImageError("damaged")
        threading.Event().wait(0.3)
        ended.set()
        return wanted.pixels[1]

    wanted.work.encoded.data[0] = 0
    monkeypatch.setattr(pipeline.reference, "decode_stored", decode_one_slowly)
    backend = open_backend("numpy", settings("jpeg"))
    backend.submit(backend.prepare(wanted.work))
    with pytest.raises(ImageError):
        backend.take()
    assert ended.is_set()
    backend.close()


def test_half_precision_on_a_gpu_is_the_oracle_rounded() -> None:
    backend = open_here(RAW_BACKEND, settings("raw", dtype=np.float16))
    wanted = step("raw", 6)
    backend.submit(wanted.work)
    found = taken(backend)
    assert found.tobytes() == np.stack(wanted.shown).astype(np.float16).tobytes()


def test_numpy_renders_into_the_memory_it_is_given() -> None:
    given = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        given.append(np.empty(shape, dtype))
        return given[-1]

    backend = open_backend("numpy", settings("raw", dtype=np.uint8, allocate=allocate))
    wanted = step("raw", 3)
    backend.submit(Work(wanted.work.encoded, wanted.work.crop, None))
    assert np.shares_memory(np.from_dlpack(backend.take()), given[0])
    backend.close()


# ---- the choice ----


@pytest.mark.parametrize(
    ("has_dali", "on_gpu", "encoding", "names", "reason"),
    [
        (True, True, "jpeg", ["dali-gpu", "dali-cpu", "numpy"], "batches go to a GPU"),
        (True, True, "raw", ["dali-gpu", "dali-cpu", "numpy"], "past DALI"),
        (True, False, "jpeg", ["dali-cpu", "numpy"], "DALI is installed, batches stay on the CPU"),
        (True, False, "raw", ["dali-cpu", "numpy"], "DALI is installed, batches stay on the CPU"),
        (False, True, "jpeg", ["numpy"], "DALI is not installed"),
        (False, True, "raw", ["dali-gpu", "numpy"], "past DALI"),
        (False, False, "jpeg", ["numpy"], "DALI is not installed"),
    ],
)
def test_auto_tries_those_that_can_work_best_first_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    has_dali: bool,
    on_gpu: bool,
    encoding: str,
    names: list[str],
    reason: str,
) -> None:
    monkeypatch.setattr("pipeline.backends._has_dali", lambda: has_dali)
    found = candidates("auto", on_gpu=on_gpu, encoding=encoding)
    assert [name for name, _ in found] == names
    assert reason in found[0][1]


@pytest.mark.parametrize(
    ("asked", "has_dali", "message"),
    [
        ("tf", True, "backend must be auto or one of dali-gpu, dali-cpu, numpy, not 'tf'"),
        ("dali-gpu", True, "dali-gpu needs a GPU to render on; use --backend auto"),
        ("dali-cpu", False, r"needs NVIDIA DALI: pip install .*or use --backend numpy"),
    ],
)
def test_a_backend_that_cannot_work_here_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: str, has_dali: bool, message: str
) -> None:
    monkeypatch.setattr("pipeline.backends._has_dali", lambda: has_dali)
    with pytest.raises(ValueError, match=message):
        candidates(asked, on_gpu=False, encoding="jpeg")


@pytest.mark.parametrize("case", [(name, "raw") for name in CPU_BACKENDS], indirect=True)
def test_a_backend_asked_for_is_the_one_opened(name: str, encoding: str) -> None:
    opened = open_first(name, lambda _: settings(encoding), on_gpu=False, encoding=encoding)
    assert (opened.name, opened.reason) == (name, "asked for")
    wanted = step(encoding, 3)
    opened.backend.submit(opened.backend.prepare(wanted.work))
    np.testing.assert_array_equal(taken(opened.backend), np.stack(wanted.shown))
    opened.backend.close()


def test_a_gpu_without_room_or_driver_is_a_reason_not_a_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(settings: RenderSettings) -> Backend:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 25 MiB.\nMore lines")

    monkeypatch.setattr("pipeline.raw.RawBackend", full)
    expected = "backend dali-gpu cannot be opened: CUDA out of memory. Tried to allocate 25 MiB.$"
    with pytest.raises(ValueError, match=expected):
        open_backend("dali-gpu", settings("raw", device=0))


def refuse(name: str, settings: RenderSettings) -> Backend:
    """A machine on which DALI is installed and does not work."""
    if name.startswith("dali"):
        raise ValueError(f"backend {name} cannot be opened: no driver")
    return open_backend(name, settings)


def test_auto_goes_on_to_the_next_where_one_does_not_work_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.backends._has_dali", lambda: True)
    monkeypatch.setattr("pipeline.backends.open_backend", refuse)
    asked = []

    def settings_of(name: str) -> RenderSettings:
        asked.append(name)
        return settings("jpeg", max_rows=len(asked))

    opened = open_first("auto", settings_of, on_gpu=True, encoding="jpeg")
    opened.backend.close()
    assert asked == ["dali-gpu", "dali-cpu", "numpy"]
    assert opened.name == "numpy" and opened.settings.max_rows == 3
    assert opened.rivals == ()
    assert opened.reason == (
        "dali-gpu does not work here (backend dali-gpu cannot be opened: no driver); "
        "dali-cpu does not work here (backend dali-cpu cannot be opened: no driver); without DALI"
    )
    with pytest.raises(ValueError, match="backend dali-cpu cannot be opened: no driver"):
        open_first("dali-cpu", settings_of, on_gpu=True, encoding="jpeg")


@pytest.mark.parametrize(
    ("asked", "on_gpu", "name", "rivals"),
    [
        ("auto", False, "dali-cpu", ("numpy",)),
        ("dali-cpu", False, "dali-cpu", ()),
        ("numpy", False, "numpy", ()),
        ("auto", True, "dali-gpu", ()),  # its pixels are its own
    ],
)
def test_another_backend_may_stand_in_where_its_pixels_are_the_same_and_none_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str, on_gpu: bool, name: str, rivals: tuple[str, ...]
) -> None:
    monkeypatch.setattr("pipeline.backends._has_dali", lambda: True)
    monkeypatch.setattr("pipeline.backends.open_backend", lambda name, settings: name)
    opened = open_first(asked, lambda _: settings("jpeg"), on_gpu=on_gpu, encoding="jpeg")
    assert (opened.name, opened.rivals) == (name, rivals)
