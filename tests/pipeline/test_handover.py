"""What a backend renders reaches the batch's device whole; checked here in its CPU form."""

import numpy as np
import pytest
import torch

from pipeline.handover import Handover
from pipeline.reference import cut, render

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 256, 256, 3), np.uint8)
CROPS = np.array([[0, 0, 0], [32, 0, 1], [0, 32, 1], [7, 19, 0]], np.int32)
OFFSETS = RNG.normal(0, 12, (4, 3)).astype(np.float32)


def test_lighting_added_at_the_end_is_that_of_the_reference_in_half_precision() -> None:
    crops = np.stack([cut(image, crop) for image, crop in zip(IMAGES, CROPS, strict=True)])
    handover = Handover("cpu")
    found = handover.finish(handover.pixels(crops), OFFSETS)
    expected = np.stack(
        [render(*each) for each in zip(IMAGES, CROPS, OFFSETS, strict=True)]
    ).astype(np.float16)
    assert found.dtype == torch.float16 and found.shape == (4, 3, 224, 224)
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), expected)


def test_without_lighting_the_pixels_are_those_of_the_crop() -> None:
    handover = Handover("cpu")
    found = handover.finish(handover.pixels(IMAGES), None)
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), IMAGES.astype(np.float16))


def test_no_images_are_handed_over_like_any() -> None:
    handover = Handover("cpu")
    empty = handover.pixels(np.empty((0, 224, 224, 3), np.uint8))
    assert handover.finish(empty, np.empty((0, 3), np.float32)).shape == (0, 3, 224, 224)


def test_numbers_of_any_layout_arrive_equal() -> None:
    table = np.arange(12, dtype=np.int32).reshape(4, 3)
    assert np.array_equal(Handover("cpu").numbers(table[:, ::-1]).numpy(), table[:, ::-1])


def test_a_gpu_without_an_index_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert Handover("cuda").device == torch.device("cuda", 3)
    assert Handover("cuda:1").device == torch.device("cuda", 1)
