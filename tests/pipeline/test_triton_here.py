"""Triton is used where a kernel of it has run, and its plain forms elsewhere."""

from collections.abc import Iterator

import pytest
import torch

from pipeline import triton_here
from pipeline.triton_here import has_triton, triton_works

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Nothing was tried before, and nothing is remembered after."""
    triton_works.cache_clear()
    yield
    triton_works.cache_clear()


def test_on_a_cpu_it_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_here, "has_triton", lambda: 1 / 0)
    assert not triton_works(torch.device("cpu"))


def test_where_it_is_not_installed_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_here, "has_triton", lambda: False)
    assert not triton_works(GPU)


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_where_it_fails_it_says_why_once_and_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nMore about it")

    monkeypatch.setattr("pipeline.triton_gather.try_out", fail)
    with pytest.warns(RuntimeWarning, match="RuntimeError: Failed to find C compiler.$") as told:
        assert not triton_works(GPU) and not triton_works(GPU)
    assert len(told) == 1


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_where_a_kernel_has_run_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []
    monkeypatch.setattr("pipeline.triton_gather.try_out", tried.append)
    assert triton_works(GPU) and triton_works(GPU)
    assert tried == [GPU]
