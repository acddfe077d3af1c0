"""Damaged shards made anew from the originals, byte for byte."""

import dataclasses
import tempfile
from pathlib import Path

from pipeline.atomic import BESIDE_PREFIX, is_local, remove_temporaries, sole_writer
from pipeline.existing_shards import Standing, refuse_strangers, standing
from pipeline.manifest import Dataset
from pipeline.originals import Source
from pipeline.plan import PlannedShard, Settings, plan
from pipeline.prepare import Engine, finish
from pipeline.receipt import read_receipt
from pipeline.renewal import put_in_place


def repair(
    source: Source, dataset: Dataset, damaged: list[tuple[str, int]], engine: Engine
) -> Dataset:
    """Makes the `damaged` shards (split, number), and those not whole, anew; then the manifest.

    They are made beside the old ones and take their place only when every one of them has the
    SHA-256 that dataset.json names. ValueError, with nothing touched, where the originals or a
    codec's version are not those that the shards were made with.
    """
    folder = dataset.folder
    settings = Settings.from_dict(dataset.settings)
    source = _of_splits(source, dataset)
    shards = list(plan(source, folder, settings))
    refuse_strangers(folder, shards)
    _refuse_other_plan(source, dataset, shards)
    wanted = {*damaged}
    broken = [
        shard
        for shard in shards
        if standing(shard) is Standing.MISSING or (shard.split, shard.number) in wanted
    ]
    here = folder if is_local(folder) else None  # else in the system's folder for such things
    with sole_writer(folder):
        remove_temporaries(folder)
        with tempfile.TemporaryDirectory(prefix=BESIDE_PREFIX, dir=here) as name:
            beside = Path(name)
            engine([dataclasses.replace(shard, out=beside) for shard in broken])
            for shard in broken:
                _require_same_bytes(source, dataset, shard, beside)
            for shard in broken:
                put_in_place(shard.split, shard.number, beside, folder)
        return finish(source, folder, settings, shards)


def _of_splits(source: Source, dataset: Dataset) -> Source:
    """The source without splits that were not prepared (a val that came later)."""
    splits = {
        name: listing
        for name, listing in source.splits.items()
        if name in dataset.splits or not len(listing)  # an empty one has its place in the plan
    }
    return dataclasses.replace(source, splits=splits)


def _refuse_other_plan(source: Source, dataset: Dataset, shards: list[PlannedShard]) -> None:
    for split, account in dataset.splits.items():
        planned = sum(shard.split == split for shard in shards)
        if planned != len(account.shards):
            raise ValueError(
                f"{source.root} would make {planned} shards of {split}, {dataset.folder} has "
                f"{len(account.shards)}: it is another source; nothing was touched"
            )


def _require_same_bytes(
    source: Source, dataset: Dataset, shard: PlannedShard, beside: Path
) -> None:
    made = read_receipt(beside, shard.split, shard.number)
    assert made is not None
    expected = dataset.splits[shard.split].shards[shard.number]
    if made.sha256 != expected.sha256:
        raise ValueError(
            f"{expected.name}, made from {source.root} now, has SHA-256 {made.sha256[:12]}…, "
            f"dataset.json says {expected.sha256[:12]}…: the originals have changed since; "
            "nothing was touched. To take the new ones, prepare with --fresh"
        )
