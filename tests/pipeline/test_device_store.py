"""Images kept on a device: the oracle's crops, each image brought once, in the right order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pipeline.device_store
from pipeline.backends import RenderSettings, Work
from pipeline.device_store import DeviceStore
from pipeline.images import RAW_HEADER, ImageFormat, Pixels, encode, fit
from pipeline.reader import StepBytes
from pipeline.reference import render
from pipeline.resident import HostStore
from pipeline.subsampled import restored, subsampled
from tests.conftest import photograph
from tests.pipeline.test_raw import LateCopies

NUM_IMAGES, ROWS, DEPTH = 9, 4, 2


@pytest.fixture(scope="module")
def pictures() -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [fit(photograph(rng, 300, 256)) for _ in range(NUM_IMAGES)]


@pytest.fixture
def stores() -> Iterator[list[DeviceStore]]:
    opened: list[DeviceStore] = []
    yield opened
    for store in opened:
        store.close()


def settings(**changes: Any) -> RenderSettings:
    chosen: dict[str, Any] = {
        "max_rows": ROWS, "num_threads": 2, "depth": DEPTH, "full": False, "dtype": np.float32,
    }  # fmt: skip
    return RenderSettings(encoding="raw", **{**chosen, **changes})


def work(store: DeviceStore, pictures: list[Pixels], rows: list[int], seed: int = 0) -> Work:
    """A step of these rows, raw, of which only what the store does not know is read."""
    rng = np.random.default_rng([seed, *rows])
    crop = rng.integers(0, 33, (len(rows), 3), np.int32)
    crop[:, 2] %= 2
    chosen = np.array(rows)
    unread = np.flatnonzero(~store.known(chosen))
    bodies = [encode(pictures[rows[i]], ImageFormat(encoding="raw")) for i in unread]
    data = np.zeros((len(unread), 256 * 256 * 3), np.uint8)
    for row, body in zip(data, bodies, strict=True):
        row[:] = np.frombuffer(body[len(RAW_HEADER) :], np.uint8)
    sizes = np.full((len(unread), 1), data.shape[1], np.int32)
    places = np.full(len(rows), -1)
    places[unread] = np.arange(len(unread))
    offsets = rng.normal(0, 20, (len(rows), 3)).astype(np.float32)
    return Work(StepBytes(data, sizes), crop, offsets, chosen, places)


def shown(step: Work, pictures: list[Pixels]) -> NDArray[np.float32]:
    assert step.rows is not None and step.offsets is not None
    each = zip(step.rows, step.crop, step.offsets, strict=True)
    return np.stack([render(pictures[row], crop, offset) for row, crop, offset in each])


def rendered(store: DeviceStore, step: Work) -> NDArray[np.float32]:
    store.submit(store.prepare(step))
    found: NDArray[np.float32] = store.take().numpy()
    return found


def test_what_is_brought_and_what_is_kept_is_shown_alike(
    pictures: list[Pixels], stores: list[DeviceStore]
) -> None:
    stores.append(store := DeviceStore(settings(), NUM_IMAGES))
    num_read = []
    for number, rows in enumerate([[3, 0, 8], [1, 3, 2, 0], [8, 2, 1, 0], [0, 1, 2, 3]]):
        step = work(store, pictures, rows, number)
        num_read.append(len(step.encoded.data))
        assert rendered(store, step).tobytes() == shown(step, pictures).tobytes()
    assert num_read == [3, 2, 0, 0]


def test_steps_begun_together_come_out_in_their_order(
    pictures: list[Pixels], stores: list[DeviceStore]
) -> None:
    stores.append(store := DeviceStore(settings(), NUM_IMAGES))
    for turn in range(3):
        steps = [work(store, pictures, rows, turn) for rows in ([3, 0, 8], [1, 2])]
        for step in steps:
            store.submit(store.prepare(step))
        for step in steps:
            assert store.take().numpy().tobytes() == shown(step, pictures).tobytes()


def test_ranks_keep_a_share_each_and_take_the_rest_from_the_host(
    pictures: list[Pixels], stores: list[DeviceStore]
) -> None:
    host = HostStore(NUM_IMAGES, shared=None)
    for rank in range(2):
        stores.append(DeviceStore(settings(), NUM_IMAGES, rank=rank, num_ranks=2, host=host))
    read = np.zeros(NUM_IMAGES, int)
    for epoch in range(3):
        order = np.random.default_rng(epoch).permutation(8)
        for rank, store in enumerate(stores):
            step = work(store, pictures, order[4 * rank : 4 * rank + 4].tolist(), epoch)
            assert step.rows is not None and step.places is not None
            read[step.rows[step.places >= 0]] += 1
            assert rendered(store, step).tobytes() == shown(step, pictures).tobytes()
    assert read.tolist() == [1] * 8 + [0]  # decoded once, by whichever rank came first
    assert [len(store._known) for store in stores] == [5, 5]
    assert not host.known(np.array([8])).any()


def test_whole_images_are_given_as_they_are(
    pictures: list[Pixels], stores: list[DeviceStore]
) -> None:
    stores.append(store := DeviceStore(settings(full=True, dtype=np.uint8), NUM_IMAGES))
    for _ in range(2):
        found = rendered(store, work(store, pictures, [5, 1]))
        assert found.tobytes() == np.stack([pictures[5], pictures[1]]).tobytes()


def test_images_in_half_the_bytes_are_the_reference_s_bit_for_bit(
    pictures: list[Pixels], stores: list[DeviceStore]
) -> None:
    host = HostStore(NUM_IMAGES, shared=None, image_format="yuv420")
    expected = [restored(subsampled(picture)) for picture in pictures]
    for rank in range(2):
        stores.append(
            store := DeviceStore(
                settings(), NUM_IMAGES, rank=rank, num_ranks=2, host=host, image_format="yuv420"
            )
        )
        for turn, rows in enumerate([[3, 0, 8], [1, 3, 2, 0], [0, 1, 2, 3]]):
            step = work(store, pictures, rows, turn)
            assert rendered(store, step).tobytes() == shown(step, expected).tobytes()
    assert store._images[0].numel() * 2 == 256 * 256 * 3


def test_a_step_that_was_dropped_is_brought_again(
    pictures: list[Pixels], stores: list[DeviceStore]
) -> None:
    stores.append(store := DeviceStore(settings(), NUM_IMAGES))
    store.submit(work(store, pictures, [1, 2]))
    store.clear()
    step = work(store, pictures, [2, 1, 0])
    assert len(step.encoded.data) == 3
    assert rendered(store, step).tobytes() == shown(step, pictures).tobytes()


def test_an_image_that_cannot_be_decoded_is_told_and_the_next_step_is_right(
    pictures: list[Pixels], stores: list[DeviceStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.append(store := DeviceStore(settings(), NUM_IMAGES))

    def fail(*arguments: object) -> Pixels:
        raise ValueError("no image")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.device_store, "decoded", fail)
        store.submit(work(store, pictures, [4, 5]))
        with pytest.raises(ValueError, match="no image"):
            store.take()
        store.clear()
    step = work(store, pictures, [4, 5])
    assert rendered(store, step).tobytes() == shown(step, pictures).tobytes()


def test_copies_that_come_late_are_waited_for_by_the_stream_alone(
    pictures: list[Pixels], stores: list[DeviceStore]
) -> None:
    """Copies may come as late as they like; the host waits for those long past."""
    copies = LateCopies()
    stores.append(store := DeviceStore(settings(), NUM_IMAGES, copies=copies))
    for turn, rows in enumerate([[3, 0], [1, 2], [5, 4], [0, 1], [2, 3], [4, 5]]):
        step = work(store, pictures, rows, turn)
        assert rendered(store, step).tobytes() == shown(step, pictures).tobytes()
    host_waits = [line for line in copies.log if line.startswith("host")]
    # The memory of step k is step k + DEPTH + 1's: it waits for that copy, long past by then.
    assert host_waits == [f"host waits for copy {number}" for number in range(3)]


def test_a_store_is_of_no_more_memory_than_its_share_and_the_steps_under_way() -> None:
    store = DeviceStore(settings(), 100, rank=1, num_ranks=3, host=HostStore(1, shared=None))
    assert store._images.shape == (34 + (DEPTH + 1) * ROWS, 256, 256, 3)
    store.close()
    assert store._images.numel() == 0 and torch.is_tensor(store._images)
