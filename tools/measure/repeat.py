"""A small split made long: the same shards under more numbers, so that a pass takes seconds."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from pipeline.manifest import Dataset, fingerprint, open_dataset, write_dataset
from pipeline.moments import read_statistics, write_statistics
from pipeline.shards import dali_index_path, shard_stem, write_index


def repeat_split(
    source: Path, target: Path, num_images: int, split: str = "train", *, copies: bool = False
) -> Dataset:
    """A shard folder at `target` that holds `split` of `source` as often as gives `num_images`.

    Tar files and their indices are symbolic links, so a repeat takes no disk space and is read
    from the same pages of memory (copies=True: copies, each with pages of its own); sample ids
    repeat as well. Index, manifest and statistics are written anew, so every reader of shard
    folders reads this one. `target` is an empty folder.
    ValueError where `source` is not a whole shard folder with statistics.
    """
    dataset = open_dataset(source)
    found = dataset.split(split)
    statistics = read_statistics(source, found.fingerprint)
    times = -(-num_images // dataset.require_images(split))
    num_shards = len(found.shards)
    for number in range(times * num_shards):
        original = number % num_shards
        tar = (source / found.shards[original].name).resolve()
        link = target / f"{shard_stem(split, number)}.tar"
        if copies:
            shutil.copyfile(tar, link)
        else:
            link.symlink_to(tar)
        index = dali_index_path(source, split, original).resolve()
        dali_index_path(target, split, number).symlink_to(index)
    shards = tuple(
        dataclasses.replace(
            found.shards[number % num_shards], name=f"{shard_stem(split, number)}.tar"
        )
        for number in range(times * num_shards)
    )
    rows = np.tile(dataset.index(split), times)
    rows["shard"] += np.repeat(
        np.arange(times, dtype=np.uint32) * np.uint32(num_shards), found.written
    )
    repeated = dataclasses.replace(
        found,
        shards=shards,
        found=times * found.written,  # quarantined originals are not repeated
        written=times * found.written,
        quarantined=0,
        enlarged=times * found.enlarged,
        fingerprint=fingerprint(shards),
        index_sha256=write_index(target, split, rows),
    )
    write_statistics(
        target,
        dataclasses.replace(
            statistics,
            num_pixels=times * statistics.num_pixels,
            fingerprint=repeated.fingerprint,
        ),
    )
    whole = dataclasses.replace(dataset, folder=target, splits={split: repeated})
    write_dataset(whole)
    return whole
