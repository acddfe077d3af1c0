"""Two builds of DALI are refused; what DALI is told for a GPU, as far as it shows without one.

DALI's pixels are tested with the other backends'.
"""

import gc
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.dlpack import from_dlpack

from pipeline.backends import Backend, RenderSettings, Work
from pipeline.draws import centre_draws
from pipeline.images import SIZE_PX
from pipeline.reader import StepBytes
from pipeline.reference import NumpyBackend
from tests.conftest import encoded, photograph

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from nvidia.dali import backend, fn, types  # noqa: E402  # only where DALI is installed
from nvidia.dali.pipeline import Pipeline  # noqa: E402
from nvidia.dali.tensors import TensorListCPU  # noqa: E402

import pipeline.graph  # noqa: E402


@dataclass(frozen=True)
class Installed:
    """What importlib.metadata says of an installed package."""

    name: str | None


def test_two_builds_of_dali_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["numpy", "nvidia-dali-cuda130", "nvidia-dali-cuda120", None]
    monkeypatch.setattr(pipeline.graph, "distributions", lambda: map(Installed, names))
    expected = "nvidia-dali-cuda120 and nvidia-dali-cuda130 are both installed.*pip uninstall"
    with pytest.raises(ImportError, match=expected):
        pipeline.graph._refuse_two_builds()


@pytest.mark.parametrize("names", [["nvidia-dali-cuda130"] * 2, ["nvidia-dali-cuda120"], []])
def test_one_build_of_dali_is_enough(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    monkeypatch.setattr(pipeline.graph, "distributions", lambda: map(Installed, names))
    pipeline.graph._refuse_two_builds()


@pytest.mark.parametrize("decoder", ["decoders__Image", "decoders__ImageCrop"])
def test_dali_knows_every_argument_of_the_gpu_decoder(decoder: str) -> None:
    dali: Any = backend  # DALI's type stubs leave out part of it
    schema = dali.GetSchema(decoder)
    arguments = pipeline.graph.decoder_arguments(0.5)
    assert [name for name in arguments if not schema.HasArgument(name)] == []
    assert not schema.HasArgument("no_such_argument")


def test_the_gpu_decoder_upsamples_as_the_cpus_and_binds_no_thread() -> None:
    arguments = pipeline.graph.decoder_arguments(0.25)
    assert arguments["jpeg_fancy_upsampling"] is True and arguments["affine"] is False
    assert arguments["hw_decoder_load"] == 0.25


@pytest.mark.parametrize("full", [False, True])
def test_on_a_cpu_what_follows_an_image_in_its_row_is_not_part_of_it(full: bool) -> None:
    """Rows are not cut to their images there; what lies behind one is left of another step."""
    rng = np.random.default_rng(3)
    stored = [
        encoded(Image.fromarray(photograph(rng, SIZE_PX, SIZE_PX)), quality=quality)
        for quality in (95, 20, 60, 85)
    ]
    longest = max(map(len, stored)) + 64
    data = rng.integers(0, 256, (4, longest), np.uint8)
    data[1] = np.resize(np.frombuffer(stored[0], np.uint8), longest)  # another JPEG begins there
    for row, image in zip(data, stored, strict=True):
        row[: len(image)] = np.frombuffer(image, np.uint8)
    sizes = np.array([[len(image)] for image in stored], np.int32)
    work = Work(StepBytes(data, sizes), centre_draws(4).crop, None)
    settings = RenderSettings(
        encoding="jpeg", max_rows=4, num_threads=2, depth=1, full=full,
        dtype=np.uint8 if full else np.float32,
    )  # fmt: skip
    rendered = []
    dali: Backend = pipeline.graph.DaliBackend(settings)
    for made in (dali, NumpyBackend(settings)):
        made.submit(made.prepare(work))
        rendered.append(from_dlpack(made.take()).numpy().copy())
        made.close()
    assert np.array_equal(rendered[0], rendered[1])


def test_what_a_gpu_decodes_is_a_copy_that_outlives_the_rows_it_came_from() -> None:
    """Rows are read into again once their step was taken, while a GPU may be at work on it."""
    rows = np.random.default_rng(0).integers(0, 256, (3, 4096), np.uint8)
    sizes, before = np.array([[1], [777], [4096]], np.int32), rows.copy()
    made = Pipeline(batch_size=3, num_threads=2, device_id=None, exec_dynamic=True)
    with made:
        fed = fn.external_source(
            source=lambda: [TensorListCPU(rows, ""), TensorListCPU(sizes, "")],
            num_outputs=2, batch=True, no_copy=True,
            dtype=[types.UINT8, types.INT32], ndim=[1, 1],
        )  # fmt: skip
        made.set_outputs(pipeline.graph.copied(*fed))
    made.build()
    (found,) = made.run()
    rows[:] = 0
    for number, size in enumerate(sizes[:, 0]):
        assert np.array_equal(np.asarray(found[number]), before[number, :size])


FEEDING = ("ExternalSource", "Slice", "_TensorSubscript", "Reinterpret")


@dataclass(frozen=True)
class Defined:
    """A pipeline as DALI was told of it: what it refuses at building on a GPU is not seen here."""

    operators: list[tuple[str, str]]  # (name, cpu, mixed or gpu)
    threads: int
    affinity: bool

    def beyond_feeding(self) -> list[tuple[str, str]]:
        """The operators but those that cut a step's bytes and numbers apart."""
        feeding = [(name, "cpu") for name in FEEDING]
        return [operator for operator in self.operators if operator not in feeding]


def defined_for_a_gpu(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Defined:
    """The pipeline of a GPU, defined and not built: that needs no GPU."""
    chosen = {"max_rows": 4, "num_threads": 9, "depth": 3, "full": False, "dtype": np.float16}
    settings = RenderSettings(**{"encoding": "jpeg", "device": 0, **chosen, **changes})
    monkeypatch.setattr(Pipeline, "build", lambda self: None)
    told: Any = pipeline.graph.DaliBackend(settings)._pipeline
    told._build_graph()
    operators = [(str(op.spec).split(":")[0].split()[-1], op._op.device) for op in told._ops]
    return Defined(operators, told._num_threads, told._set_affinity)


def test_on_a_gpu_decoding_and_cropping_are_one_operator_and_the_rest_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defined = defined_for_a_gpu(monkeypatch)
    assert ("Slice", "cpu") in defined.operators
    assert defined.beyond_feeding() == [
        ("decoders__ImageCrop", "mixed"),
        ("CropMirrorNormalize", "gpu"),
    ]


def test_on_a_gpu_whole_images_are_decoded_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defined = defined_for_a_gpu(monkeypatch, full=True, dtype=np.uint8)
    assert defined.beyond_feeding() == [("decoders__Image", "mixed")]


@pytest.mark.parametrize(("threads", "each"), [(9, 4), (2, 1), (1, 1)])
def test_the_pipeline_and_the_gpu_decoder_share_the_threads_and_bind_none(
    monkeypatch: pytest.MonkeyPatch, threads: int, each: int
) -> None:
    defined = defined_for_a_gpu(monkeypatch, num_threads=threads)
    assert defined.threads == each and not defined.affinity


def test_after_an_error_the_inputs_stay_as_long_as_the_pipeline_that_may_read_them() -> None:
    settings = RenderSettings(
        encoding="jpeg", max_rows=2, num_threads=1, depth=2, full=False, dtype=np.float32
    )
    made = pipeline.graph.DaliBackend(settings)
    no_images = StepBytes(np.zeros((2, 128), np.uint8), np.full((2, 1), 128, np.int32))
    for _ in range(2):
        made.submit(made.prepare(Work(no_images, centre_draws(2).crop, None)))
    old = weakref.ref(made._pipeline)
    is_gone: list[bool] = []

    class Inputs(deque[Any]):
        def clear(self) -> None:
            is_gone.append(old() is None)
            super().clear()

    made._running = Inputs()
    held: list[Exception] = []
    try:
        made.take()
    except RuntimeError as error:
        held.append(error)  # as its frames do the pipeline
    assert len(made._running) == 2
    made.clear()
    assert held and is_gone == [] and len(made._running) == 0
    held.clear()
    gc.collect()
    assert is_gone == [True]
    rng = np.random.default_rng(0)
    image = encoded(Image.fromarray(photograph(rng, SIZE_PX, SIZE_PX)))
    data = np.frombuffer(image * 2, np.uint8).reshape(2, -1)
    work = Work(StepBytes(data, np.full((2, 1), len(image), np.int32)), centre_draws(2).crop, None)
    made.submit(made.prepare(work))
    assert from_dlpack(made.take()).shape[0] == 2
    made.close()
