"""The crops gathered by torch are the oracle's, bit for bit, in every type."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.gather import gather_crop
from pipeline.reference import cut, render

CORNERS = [[0, 0, 0], [32, 0, 1], [0, 32, 1], [32, 32, 0], [7, 19, 1], [16, 16, 0]]  # x, y, flip
ROWS = [4, 0, 4, 2, 1, 3]  # of five images; one twice, in no order


def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3), np.uint8)


def gathered(offsets: NDArray[np.float32] | None, dtype: torch.dtype) -> NDArray[np.generic]:
    lighting = None if offsets is None else torch.from_numpy(offsets)
    crop = torch.tensor(CORNERS, dtype=torch.int32)
    found = gather_crop(torch.from_numpy(images()), torch.tensor(ROWS), crop, lighting, dtype)
    assert found.is_contiguous() and found.shape == (6, 224, 224, 3)
    array: NDArray[np.generic] = found.numpy()
    return array


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_without_lighting_every_pixel_is_the_one_of_the_cut(dtype: torch.dtype) -> None:
    expected = [
        cut(images()[row], np.array(crop, np.int32))
        for row, crop in zip(ROWS, CORNERS, strict=True)
    ]
    found = gathered(None, dtype)
    np.testing.assert_array_equal(found, np.stack(expected).astype(found.dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_with_lighting_the_crops_are_those_of_the_oracle_rounded_once(dtype: torch.dtype) -> None:
    offsets = np.random.default_rng(1).normal(0, 200, (6, 3)).astype(np.float32)  # below 0, too
    expected = [
        render(images()[row], np.array(crop, np.int32), offset)
        for row, crop, offset in zip(ROWS, CORNERS, offsets, strict=True)
    ]
    found = gathered(offsets, dtype)
    assert found.tobytes() == np.stack(expected).astype(found.dtype).tobytes()


def test_no_rows_give_no_crops() -> None:
    none = torch.empty(0, dtype=torch.int64)
    crop = torch.empty((0, 3), dtype=torch.int32)
    found = gather_crop(torch.from_numpy(images()), none, crop, None, torch.float16)
    assert found.shape == (0, 224, 224, 3) and found.dtype == torch.float16
