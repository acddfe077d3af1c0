"""A renderer opens its backend with what the configuration says, and its images are a batch's."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline.backends
import pipeline.renderer
from pipeline.backends import RenderSettings, Work
from pipeline.calibrate import Choice, fastest
from pipeline.draws import centre_draws
from pipeline.driver import Driver
from pipeline.handover import Handover
from pipeline.images import SIZE_PX
from pipeline.loader_config import LoaderConfig
from pipeline.reader import StepBytes
from pipeline.renderer import Renderer
from pipeline.steps import Step


class HandoverToGpu(Handover):
    """One that says it gives to a GPU; what it does stays on the CPU."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.device = torch.device("cuda:3")


def renderer(handover: Handover | None = None, **config: Any) -> Renderer:
    chosen: dict[str, Any] = {"batch_size": 10, "backend": "numpy", "threads": 3, **config}
    return Renderer(
        LoaderConfig(shards=Path("nowhere"), **chosen), "raw", handover or Handover("cpu")
    )


def raw_step(seed: int = 0) -> Work:
    data = np.random.default_rng(seed).integers(0, 256, (4, SIZE_PX * SIZE_PX * 3), np.uint8)
    sizes = np.full((4, 1), data.shape[1], np.int32)
    return Work(StepBytes(data, sizes), centre_draws(4).crop, None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"dtype": np.float32, "full": False, "max_rows": 10, "num_threads": 3, "depth": 3}),
        ({"views": "full"}, {"dtype": np.uint8, "full": True}),
        ({"world_size": 5, "prefetch": 2}, {"max_rows": 2, "depth": 2}),
        ({"hw_decoder_load": 0.4}, {"hw_decoder_load": 0.4}),
        ({"hw_decoder_load": 0.4, "exact": True}, {"hw_decoder_load": 0.0}),
    ],
)
def test_a_backend_is_opened_with_what_the_configuration_says(
    config: dict[str, Any], expected: dict[str, Any]
) -> None:
    opened = renderer(**config)
    assert {name: getattr(opened.settings, name) for name in expected} == expected
    assert isinstance(opened.backend, Driver)  # in host memory: driven by a thread
    opened.backend.close()


@pytest.mark.parametrize(
    ("name", "dtype", "device", "adds_lighting"),
    [("dali-gpu", np.float16, 3, True), ("numpy", np.uint8, None, False)],
)
def test_for_a_gpu_the_lighting_is_added_there(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: Any, device: int | None, adds_lighting: bool
) -> None:
    def echo(name: str, settings: RenderSettings) -> str:
        return name

    monkeypatch.setattr(pipeline.backends, "open_backend", echo)
    monkeypatch.setattr(pipeline.renderer, "pinned_empty", np.zeros)  # it needs a GPU
    opened = renderer(HandoverToGpu(), backend=name)
    assert (opened.settings.dtype, opened.settings.device) == (dtype, device)
    assert (opened.settings.allocate is np.zeros) == (not adds_lighting)
    offsets, drawn = np.ones((4, 3), np.float32), raw_step()
    step = Step(np.arange(4), np.arange(4), np.arange(4), drawn.crop, offsets)
    work = opened.work(step, drawn.encoded, opened.unread(step.rows))
    assert (work.offsets is offsets) == adds_lighting


def test_images_are_those_rendered_channels_first_and_none_of_no_step() -> None:
    opened = renderer()
    work = raw_step()
    opened.backend.submit(opened.backend.prepare(work))
    images = opened.images(opened.backend.take(), None)
    stored = work.encoded.data.reshape(4, SIZE_PX, SIZE_PX, 3)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), stored[:, 16:240, 16:240])
    none = opened.images(None, None)
    assert (none.shape, none.dtype) == ((0, 3, 224, 224), torch.float32)
    opened.backend.close()


def test_after_a_calibration_it_renders_with_what_was_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline.renderer, "fastest", partial(fastest, max_seconds=0.0))
    opened, work = renderer(threads=2), raw_step()
    opened.backend.submit(opened.backend.prepare(work))
    before = opened.images(opened.backend.take(), None).clone()
    opened.calibrate(work)
    assert opened.settings.num_threads in (1, 2)
    opened.backend.submit(opened.backend.prepare(work))
    assert torch.equal(opened.images(opened.backend.take(), None), before)
    opened.backend.close()


@pytest.mark.parametrize("taken", ["dali-cpu", "numpy"])
def test_with_auto_a_calibration_takes_either_backend_and_the_pixels_stay(
    taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    seen = []

    def choose(choices: Sequence[Choice], *_: object) -> Choice:
        seen.append([(one.backend, one.settings.num_threads) for one in choices])
        return next(one for one in choices if one.backend == taken)

    monkeypatch.setattr(pipeline.renderer, "fastest", choose)
    opened, work = renderer(threads=2, backend="auto"), raw_step()
    opened.backend.submit(opened.backend.prepare(work))
    before = opened.images(opened.backend.take(), None).clone()
    opened.calibrate(work)
    assert opened.name == taken
    assert opened.description == (
        f"{taken} (the fastest of dali-cpu and numpy here, which give the same pixels), 2 threads"
    )
    several = [(name, threads) for name in ("dali-cpu", "numpy") for threads in (2, 1)]
    assert seen == [several, [(taken, 2)]]
    opened.backend.submit(opened.backend.prepare(work))
    assert torch.equal(opened.images(opened.backend.take(), None), before)
    opened.backend.close()


@pytest.mark.parametrize(("threads", "said"), [(1, "1 thread"), (3, "3 threads")])
def test_it_tells_its_name_reason_and_threads(threads: int, said: str) -> None:
    opened = renderer(threads=threads)
    assert opened.description == f"numpy (asked for), {said}"
    assert opened.hw_decoder_load is None
    opened.backend.close()
