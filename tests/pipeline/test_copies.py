"""Copies arrive; page-locked memory is asked of torch. How a GPU orders them: test_gpu.py."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.copies import HostCopies, pinned_empty


def test_on_the_host_a_copy_is_at_its_end_when_it_has_begun() -> None:
    copies = HostCopies()
    source, target = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    end = copies.begin([(target[:3], source[:3]), (target[3:], source[3:])], after=copies.mark())
    copies.wait(end)
    end.synchronize()
    assert torch.equal(target, source)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_page_locked_arrays_have_the_shape_and_type_asked_for(
    monkeypatch: pytest.MonkeyPatch, dtype: type[np.generic]
) -> None:
    asked: list[dict[str, Any]] = []
    empty = torch.empty

    def without_a_gpu(shape: tuple[int, ...], **options: Any) -> torch.Tensor:
        asked.append(options)
        return empty(shape, dtype=options["dtype"])

    monkeypatch.setattr(torch, "empty", without_a_gpu)
    array = pinned_empty((3, 4), dtype)
    assert array.shape == (3, 4) and array.dtype == dtype and array.flags.c_contiguous
    assert [options["pin_memory"] for options in asked] == [True]
