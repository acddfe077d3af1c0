"""A simulated data set is one: a loader reads it, a verification finds its index whole."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.loader import Loader, LoaderConfig
from pipeline.manifest import open_dataset
from pipeline.plan import Settings, plan
from tools.measure.simulated import simulate_shards, simulate_source

PER_SHARD = 8


@pytest.mark.parametrize("num_images", [1, 7, 8, 9, 40, 43])
def test_every_sample_of_a_simulated_split_is_delivered_once(
    num_images: int, tmp_path: Path
) -> None:
    simulate_shards(tmp_path, num_images, num_classes=5, images_per_shard=PER_SHARD)
    dataset = open_dataset(tmp_path)  # every shard of the size it says
    shards = dataset.split("train").shards
    assert sum(shard.samples for shard in shards) == num_images
    assert len(shards) == -(-num_images // PER_SHARD)
    config = LoaderConfig(
        shards=tmp_path, batch_size=4, training=False, backend="numpy", threads=1
    )
    with Loader(config) as loader:
        batches = list(loader)
    ids = [i for batch in batches for i in batch.ids.tolist()]
    assert sorted(ids) == list(range(num_images))
    labels = {label for batch in batches for label in batch.labels.tolist()}
    assert labels <= set(range(5))


def test_full_shards_are_one_file_and_take_no_more_of_the_disk(tmp_path: Path) -> None:
    simulate_shards(tmp_path, 5 * PER_SHARD + 3, images_per_shard=PER_SHARD)
    inodes = Counter(path.stat().st_ino for path in tmp_path.glob("*.tar"))
    assert sorted(inodes.values()) == [1, 5]


@pytest.mark.parametrize(("num_images", "num_classes"), [(100, 7), (3, 5), (70, 7)])
def test_a_simulated_listing_is_planned_whole(num_images: int, num_classes: int) -> None:
    source = simulate_source(num_images, num_classes)
    shards = list(plan(source, Path("out"), Settings(images_per_shard=PER_SHARD)))
    ids = np.concatenate([shard.ids for shard in shards])
    assert sorted(ids.tolist()) == list(range(num_images))
    listing = source.splits["train"]
    names = list(listing.names)
    assert len(set(names)) == num_images
    for name, label in zip(names, listing.labels.tolist(), strict=True):
        assert name.startswith(f"train/{source.classes[label]}/".encode())
