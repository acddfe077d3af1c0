"""Stored images picked one by one: whatever of them can still be read."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from pipeline.cores import available_cores
from pipeline.images import Pixels, decode_stored
from pipeline.manifest import Dataset
from pipeline.open_shards import LocalShards
from pipeline.order import Rows

BATCH = 64


@dataclass(frozen=True)
class Images:
    """Some rows of a split's index with their pixels, uint8 (N, 256, 256, 3), and labels."""

    rows: Rows
    labels: NDArray[np.int32]
    pixels: Pixels


class StoredImages:
    """The images of a split, on this machine; `missing` counts those that could not be read."""

    def __init__(self, dataset: Dataset, split: str) -> None:
        self.index = dataset.index(split)
        self.missing: dict[str, int] = {}  # by the reason
        paths = [dataset.folder / shard.name for shard in dataset.split(split).shards]
        self._shards = LocalShards(paths)

    def __len__(self) -> int:
        return len(self.index)

    def batches(self, rows: Rows) -> Iterator[Images]:
        """Those of `rows` that can be read, in their order, at most 64 in memory at a time."""
        with ThreadPoolExecutor(available_cores()) as pool:
            for first in range(0, len(rows), BATCH):
                part = rows[first : first + BATCH]
                found = [one for one in zip(part, pool.map(self._read, part), strict=True)]
                kept = [(row, pixels) for row, pixels in found if not isinstance(pixels, str)]
                for reason in (pixels for _, pixels in found if isinstance(pixels, str)):
                    self.missing[reason] = self.missing.get(reason, 0) + 1
                if kept:
                    there = np.array([row for row, _ in kept])
                    yield Images(
                        there, self.index["label"][there], np.stack([one for _, one in kept])
                    )

    def read(self, rows: Rows) -> dict[int, Pixels]:
        """The pixels of those of `rows` that can be read, by row."""
        return {
            int(row): pixels
            for images in self.batches(np.asarray(rows, np.int64))
            for row, pixels in zip(images.rows, images.pixels, strict=True)
        }

    def close(self) -> None:
        """Closes the shards."""
        self._shards.close()

    def _read(self, row: int) -> Pixels | str:
        """An image's pixels, or why there are none."""
        place = self.index[row]
        try:
            shard = self._shards.get(int(place["shard"]))
            data = os.pread(shard.descriptor, int(place["size"]), int(place["offset"]))
            if len(data) != place["size"] or crc32(data) != place["crc32"]:
                return f"{shard.path} does not hold the bytes that were written"
            return decode_stored(data)
        except (ValueError, OSError) as error:  # ImageError among them
            return str(error)


def pick_sample(num_rows: int, count: int, seed: int) -> Rows:
    """`count` rows, or all where there are no more, each as likely as the others; ascending."""
    if count >= num_rows:
        return np.arange(num_rows)
    generator = np.random.Generator(np.random.Philox(seed))
    return np.sort(generator.choice(num_rows, count, replace=False))
