"""The decoder beside a step: on the loader's own bytes, as often as asked, in its own thread."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.images import Pixels, decode_stored
from pipeline.loader import Loader, LoaderConfig
from pipeline.manifest import open_dataset
from tools.measure.replay import Replay, read_batches

BATCH_SIZE = 8
PATIENCE_SECONDS = 60.0


def config(shards: Path) -> LoaderConfig:
    return LoaderConfig(shards=shards, batch_size=BATCH_SIZE, backend="numpy", threads=1)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> "Decoded":
    return Decoded(monkeypatch)


class Decoded:
    """The images decoded so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._change = threading.Condition()
        self.images: list[bytes] = []
        monkeypatch.setattr("pipeline.reference.decode_stored", self._decode)

    def _decode(self, data: bytes) -> Pixels:
        with self._change:
            self.images.append(bytes(data))
            self._change.notify_all()
        return decode_stored(data)

    def wait_for(self, num_images: int) -> None:
        with self._change:
            assert self._change.wait_for(
                lambda: len(self.images) >= num_images, PATIENCE_SECONDS
            )


@pytest.fixture
def replay(shard_folder: Path) -> Iterator[Replay]:
    with Loader(config(shard_folder)) as loader:
        opened = Replay(loader.config.rendered_as(loader.settings, loader.backend), 2)
    yield opened
    opened.close()


def test_it_reads_what_the_loader_reads(shard_folder: Path) -> None:
    """The ids, crops and bytes of the first steps of the first epoch."""
    settings = config(shard_folder)
    batches = read_batches(settings, open_dataset(shard_folder), 2)
    with Loader(settings) as loader:
        for (step, encoded), batch in zip(batches, loader, strict=False):
            assert step.ids.tolist() == batch.ids.tolist()
            assert step.crop.tolist() == batch.crop.tolist()
            for row, size in enumerate(encoded.sizes[:, 0]):
                decoded = decode_stored(encoded.data[row, :size].tobytes())
                assert decoded.shape == (256, 256, 3)
    assert len(batches) == 2


def test_each_batch_asked_for_is_decoded_in_turn_and_no_other(
    replay: Replay, decoded: Decoded
) -> None:
    for _ in range(3):
        replay.ask()
    decoded.wait_for(3 * BATCH_SIZE)
    replay.rest()
    first, second, third = (
        set(decoded.images[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]) for i in range(3)
    )
    assert len(decoded.images) == 3 * BATCH_SIZE
    assert first == third and first != second


def test_at_rest_nothing_is_decoded(replay: Replay, decoded: Decoded) -> None:
    for _ in range(50):
        replay.ask()
    replay.rest()
    num_images = len(decoded.images)
    assert num_images < 50 * BATCH_SIZE and num_images % BATCH_SIZE == 0
    replay.ask()
    decoded.wait_for(num_images + BATCH_SIZE)
    replay.rest()
    assert len(decoded.images) == num_images + BATCH_SIZE


def test_an_error_of_the_decoder_is_raised_where_the_next_is_asked_for(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = threading.Event()

    def broken(data: bytes) -> Pixels:
        reached.set()
        raise ValueError("no image")

    monkeypatch.setattr("pipeline.reference.decode_stored", broken)
    replay.ask()
    assert reached.wait(PATIENCE_SECONDS)
    replay.rest()
    with pytest.raises(ValueError, match="no image"):
        replay.ask()
