"""The exact sums over a whole split: merged from preparation's, or decoded again."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isal.isal_zlib import crc32

from pipeline.cores import available_cores
from pipeline.images import ImageError, decode_stored
from pipeline.manifest import Dataset
from pipeline.moments import Sums
from pipeline.shards import Index, read_sums, shard_stem


def merge_sums(dataset: Dataset, split: str) -> Sums:
    """The sums that preparation left beside every shard, added up.

    ValueError where one is missing or damaged, naming it.
    """
    total = Sums()
    for number, shard in enumerate(dataset.split(split).shards):
        try:
            sums = read_sums(dataset.folder, split, number)
            if sums.num_images != shard.samples:
                raise ValueError(f"sums of {sums.num_images} images, not {shard.samples}")
            total.merge(sums)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{dataset.folder / shard_stem(split, number)}.sums.npz cannot be used ({error}); "
                f"run: tools/compute_pca.py {dataset.folder} --recompute"
            ) from error
    return total


def decode_sums(dataset: Dataset, split: str, report: Callable[[int], None]) -> Sums:
    """The sums over every image of the split, decoded now, on all cores; equals `merge_sums`.

    report: called in this thread with the number of images done. ValueError where an image is not
    the one that was written.
    """
    rows = dataset.index(split)
    numbers = range(len(dataset.split(split).shards))
    total = Sums()
    with ThreadPoolExecutor(available_cores()) as pool:  # decoding and summing release the GIL
        parts = pool.map(
            lambda number: _decode_shard(dataset.folder, split, number, rows), numbers
        )
        for part in parts:
            total.merge(part)
            report(total.num_images)
    return total


def _decode_shard(folder: Path, split: str, number: int, rows: Index) -> Sums:
    sums = Sums()
    path = folder / f"{shard_stem(split, number)}.tar"
    with open(path, "rb") as file:
        for row in rows[rows["shard"] == number]:
            data = os.pread(file.fileno(), int(row["size"]), int(row["offset"]))
            try:
                if crc32(data) != row["crc32"]:
                    raise ImageError("its bytes are not those written")
                sums.add(decode_stored(data))
            except ImageError as error:
                raise ValueError(
                    f"{path}, sample {row['id']}: {error}; mend it: tools/verify_shards.py "
                    f"{folder} --repair SOURCE"
                ) from error
    return sums
