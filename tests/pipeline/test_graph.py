"""Two builds of DALI are refused; DALI's pixels are tested with the other backends'."""

from dataclasses import dataclass

import pytest

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

import pipeline.graph  # noqa: E402  # only where DALI is installed


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
