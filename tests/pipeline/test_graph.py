"""Two builds of DALI are refused; what DALI is told for a GPU, as far as it shows without one.

DALI's pixels are tested with the other backends'.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pipeline.backends import RenderSettings

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from nvidia.dali import backend  # noqa: E402  # only where DALI is installed
from nvidia.dali.pipeline import Pipeline  # noqa: E402

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
