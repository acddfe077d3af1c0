"""Shards made again beside those there, which stay in use until the new take their places."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.atomic import is_local, put_whole, remove_temporaries
from pipeline.existing_shards import Standing, standing
from pipeline.plan import PlannedShard
from pipeline.receipt import made_receipt, receipt_path
from pipeline.shards import dali_index_path, shard_stem, sums_path

RENEWAL_NAME = ".renewal"  # a folder in that of the shards; what is in it outlives a kill


class Renewal:
    """The shards of `out` that lack originals which can be read now, and their successors.

    The old ones are touched by `take_places` alone: until then a reader sees the data set as it
    was, and what stops the preparation costs it nothing.
    """

    def __init__(self, out: Path, shards: Sequence[PlannedShard]) -> None:
        self._folder, self._shards = out / RENEWAL_NAME, shards
        if shards and is_local(out):
            self._folder.mkdir(exist_ok=True)
            remove_temporaries(self._folder)

    def __len__(self) -> int:
        return len(self._shards)

    def unmade(self) -> list[PlannedShard]:
        """The successors that an earlier start did not make yet."""
        beside = [dataclasses.replace(shard, out=self._folder) for shard in self._shards]
        return [shard for shard in beside if not _is_made(shard)]

    def take_places(self) -> int:
        """Puts each successor in the place of its shard, if it lacks less; returns how many were.

        It does not where an original could be read when the old shard was made and cannot now.
        """
        num_put = 0
        for shard in self._shards:
            if _lacked(shard, self._folder) < _lacked(shard, shard.out):
                put_in_place(shard.split, shard.number, self._folder, shard.out)
                num_put += 1
        return num_put

    def remove(self) -> None:
        """Removes the folder of successors, if there is one."""
        if is_local(self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)
        elif self._folder.exists():
            getattr(self._folder, "fs").rm(getattr(self._folder, "path"), recursive=True)


def put_in_place(split: str, number: int, beside: Path, folder: Path) -> None:
    """Moves a shard's files, its receipt last, so that it is whole or not at all."""
    receipt_path(folder, split, number).unlink(missing_ok=True)
    tar = f"{shard_stem(split, number)}.tar"
    put_whole(beside / tar, folder / tar)
    for path in (dali_index_path, sums_path, receipt_path):
        put_whole(path(beside, split, number), path(folder, split, number))


def _is_made(shard: PlannedShard) -> bool:
    try:
        return standing(shard) is Standing.FINISHED
    except ValueError:  # made from what an original was meanwhile
        return False


def _lacked(shard: PlannedShard, folder: Path) -> set[int]:
    """The ids of originals that a shard in `folder` lacks."""
    receipt = made_receipt(folder, shard.split, shard.number)
    return {int(entry["id"]) for entry in receipt.quarantined}
