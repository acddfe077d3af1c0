"""The shards load unchanged in other people's readers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images import decode_stored
from pipeline.manifest import TIMM_NAME, open_dataset
from pipeline.shards import dali_index_path


def stored(folder: Path, split: str) -> dict[int, tuple[int, bytes]]:
    """What our index says is in a split: sample id -> (label, bytes of the image)."""
    dataset = open_dataset(folder)
    found = {}
    for row in dataset.index(split):
        shard = folder / dataset.splits[split].shards[int(row["shard"])].name
        start = int(row["offset"])
        data = shard.read_bytes()[start : start + int(row["size"])]
        found[int(row["id"])] = int(row["label"]), data
    return found


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_webdataset_reads_every_sample(shard_folder: Path) -> None:
    wds: Any = pytest.importorskip("webdataset", reason="webdataset is not installed")
    names = [str(shard_folder / s.name) for s in open_dataset(shard_folder).splits["train"].shards]
    samples = wds.WebDataset(names, shardshuffle=False)
    found = {
        int(sample["__key__"]): (int(sample["cls"]), bytes(sample["jpg"])) for sample in samples
    }
    assert found == stored(shard_folder, "train")


def test_dalis_own_reader_reads_every_sample_through_our_index(shard_folder: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    split = open_dataset(shard_folder).splits["train"]
    numbers = range(len(split.shards))
    pipeline = Pipeline(batch_size=split.written, num_threads=1, device_id=None)
    with pipeline:
        read: Any = fn.readers.webdataset(
            paths=[str(shard_folder / shard.name) for shard in split.shards],
            index_paths=[str(dali_index_path(shard_folder, "train", n)) for n in numbers],
            ext=["jpg", "cls"],
        )
        pipeline.set_outputs(*read)
    images, labels = pipeline.run()
    found = sorted(
        (int(bytes(np.array(labels[i]))), bytes(np.array(images[i])))
        for i in range(split.written)
    )
    assert found == sorted(stored(shard_folder, "train").values())


def test_the_info_file_has_the_fields_that_timm_documents(shard_folder: Path) -> None:
    """timm/data/readers/reader_wds.py: splits -> name, num_samples, filenames, shard_lengths."""
    splits = json.loads((shard_folder / TIMM_NAME).read_text())["splits"]
    dataset = open_dataset(shard_folder)
    assert splits.keys() == dataset.splits.keys()
    for name, info in splits.items():
        assert info["name"] == name and info["num_samples"] == dataset.num_samples(name)
        assert sum(info["shard_lengths"]) == info["num_samples"]
        for file, length in zip(info["filenames"], info["shard_lengths"], strict=True):
            assert (shard_folder / file).is_file() and length > 0


def test_pillow_decodes_every_stored_image_to_our_pixels(shard_folder: Path) -> None:
    for _, data in stored(shard_folder, "val").values():
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), decode_stored(data))
