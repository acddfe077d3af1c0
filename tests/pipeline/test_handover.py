"""What a backend renders reaches the batch's device whole; checked here in its CPU form."""

import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.handover import MAX_BEING_COPIED, Handover
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


def test_a_tensor_stays_torchs_own() -> None:
    """Torch would not know memory that came by DLPack: record_stream() would do nothing."""
    rendered = torch.zeros((2, 224, 224, 3), dtype=torch.float16)
    found = Handover("cpu").pixels(rendered)
    assert found._base is rendered and found.shape == (2, 3, 224, 224)


def test_numbers_of_any_layout_arrive_equal() -> None:
    table = np.arange(12, dtype=np.int32).reshape(4, 3)
    assert np.array_equal(Handover("cpu").numbers(table[:, ::-1]).numpy(), table[:, ::-1])


def test_a_gpu_without_an_index_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert Handover("cuda").device == torch.device("cuda", 3)
    assert Handover("cuda:1").device == torch.device("cuda", 1)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=f"device {device}: torch sees no GPU here"):
            Handover(device)
    with pytest.raises(ValueError, match="device 'gpu' is none; give cpu, cuda"):
        Handover("gpu")


class CopyEvent:
    """An event at the end of a copy from page-locked memory."""

    def __init__(self) -> None:
        self.has_come = False

    def query(self) -> bool:
        return self.has_come

    def synchronize(self) -> None:
        self.has_come = True


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[CopyEvent]:
    """The events of the copies of a hand-over that takes the CPU for a GPU."""
    events: list[CopyEvent] = []

    class Stream:
        def record_event(self) -> CopyEvent:
            events.append(CopyEvent())
            return events[-1]

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    monkeypatch.setattr(Handover, "on_gpu", True)
    return events


def give(handover: Handover) -> Callable[[], object]:
    """Hands a backend's memory over and drops it; says whether anybody holds it still."""
    memory = np.zeros((1, 224, 224, 3), np.uint8)
    handover.finish(handover.pixels(memory), None)
    return weakref.ref(memory)


def test_page_locked_memory_is_held_until_it_was_copied(copied: list[CopyEvent]) -> None:
    handover = Handover("cpu")
    first, second = give(handover), give(handover)
    assert first() is not None and second() is not None
    copied[0].has_come = True
    third = give(handover)
    assert first() is None and second() is not None and third() is not None


def test_the_host_is_ahead_of_the_copies_by_so_many_steps_only(copied: list[CopyEvent]) -> None:
    handover = Handover("cpu")
    given = [give(handover) for _ in range(MAX_BEING_COPIED + 3)]
    held = [memory() is not None for memory in given]
    assert held == [False] * 3 + [True] * MAX_BEING_COPIED
    assert [event.has_come for event in copied] == [not one for one in held]
