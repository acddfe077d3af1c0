"""The same few images for ever: which, in which order, from where it was left."""

from pathlib import Path

import pytest
import torch

from pipeline.loader import Batch, Loader, LoaderConfig
from trainer.overfit import OverfitFeed, require_images

NUM_IMAGES = 10
BATCH_SIZE = 4


def loader(shards: Path, batch_size: int = BATCH_SIZE) -> Loader:
    return Loader(
        LoaderConfig(shards=shards, batch_size=batch_size, training=False, backend="numpy")
    )


@pytest.fixture
def feed(shard_folder: Path) -> OverfitFeed:
    return OverfitFeed(loader(shard_folder), NUM_IMAGES)


@pytest.fixture
def expected(shard_folder: Path) -> Batch:
    """The first images of the training split, in one batch."""
    with loader(shard_folder, NUM_IMAGES) as images:
        return next(iter(images))


def ids(batches: list[Batch]) -> list[int]:
    return [int(number) for batch in batches for number in batch.ids]


def test_images_are_the_first_of_the_split_without_augmentation(
    feed: OverfitFeed, expected: Batch
) -> None:
    batches = feed.whole()
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    for name in ("images", "labels", "ids", "crop"):
        whole = torch.cat([getattr(batch, name) for batch in batches])
        assert torch.equal(whole, getattr(expected, name))
    assert all(
        batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches
    )
    assert expected.crop.tolist() == [[16, 16, 0]] * NUM_IMAGES
    assert len(set(ids(batches))) == NUM_IMAGES


def test_the_classes_are_mixed(feed: OverfitFeed) -> None:
    assert len({int(label) for batch in feed.whole() for label in batch.labels}) > 1


def test_the_batches_go_round_so_that_each_image_comes_up_equally_often(
    feed: OverfitFeed, expected: Batch
) -> None:
    assert len(feed) == 2  # of 4 of the 10 images
    seen = []
    for epoch in range(5):
        feed.set_epoch(epoch)
        batches = list(feed)
        assert [len(batch.labels) for batch in batches] == [4, 4]
        seen += ids(batches)
        for batch in batches:
            for image, label, number in zip(batch.images, batch.labels, batch.ids, strict=True):
                row = expected.ids.tolist().index(int(number))
                assert torch.equal(image, expected.images[row])
                assert label == expected.labels[row]
    assert seen == expected.ids.tolist() * 4


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5])
def test_it_continues_from_its_state(shard_folder: Path, feed: OverfitFeed, stop: int) -> None:
    whole = [batch for _ in range(4) for batch in feed]
    first, second = (OverfitFeed(loader(shard_folder), NUM_IMAGES) for _ in range(2))
    begun: list[Batch] = []
    while len(begun) < stop:
        for batch in first:
            begun.append(batch)
            if len(begun) == stop:
                break
    second.load_state_dict(first.state_dict())
    rest: list[Batch] = []
    while len(begun) + len(rest) < len(whole):
        rest += list(second)
    assert ids(begun + rest) == ids(whole)


def test_the_state_of_an_ordinary_run_is_refused(shard_folder: Path, feed: OverfitFeed) -> None:
    with loader(shard_folder) as ordinary:
        state = ordinary.state_dict()
    with pytest.raises(ValueError, match="not made by --overfit 10"):
        feed.load_state_dict(state)


def test_more_images_than_there_are_is_refused() -> None:
    require_images(39, 39)
    with pytest.raises(ValueError, match="--overfit is 40, the training split has 39 images"):
        require_images(40, 39)
