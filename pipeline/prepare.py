"""A shard folder from a source: what its plan lacks is made, then the files that tie all together.

Finished shards are kept, and stay in use until others take their place.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.atomic import (
    forget_listing,
    is_local,
    remove_temporaries,
    sole_writer,
    write_whole,
)
from pipeline.existing_shards import (
    Standing,
    claim,
    refuse_inside,
    refuse_other_settings,
    refuse_strangers,
    standing,
)
from pipeline.manifest import (
    CLAIM_NAME,
    DATASET_NAME,
    QUARANTINE_NAME,
    Dataset,
    Shard,
    Split,
    fingerprint,
    remove_dataset,
    write_dataset,
)
from pipeline.originals import Source
from pipeline.plan import PlannedShard, Settings, plan
from pipeline.receipt import made_receipt
from pipeline.renewal import Renewal
from pipeline.shard_maker import Stages
from pipeline.shards import read_rows, write_index

Engine = Callable[[list[PlannedShard]], Stages]  # makes the shards of tasks, see engines.py
NUM_CHECKS = 16  # receipts looked at together: an object store answers each in tens of ms


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a preparation did: the data set, how many shards were made now or found finished.

    num_removed: files of earlier shards that went first, where it was to start over.
    """

    dataset: Dataset
    num_made: int
    num_kept: int
    stages: Stages
    num_removed: int = 0


def prepare(
    source: Source, out: Path, settings: Settings, engine: Engine, *, fresh: bool = False
) -> Outcome:
    """Makes every shard that is not finished yet, then index, quarantine and dataset.json.

    A shard that lacks an original which can be read now is made again beside itself: where no
    other is missing, readers have the data set as it was until all of those take their places.
    fresh: earlier shards are removed first, once nothing refuses the preparation any more.

    ValueError where the folder holds shards of other settings or originals, or where no file of a
    split can be prepared; OSError where the disk fails. Either way finished shards stay.
    """
    refuse_inside(source, out)
    if is_local(out):  # an object store has no folders; a bucket is its owner's to make
        out.mkdir(parents=True, exist_ok=True)
    with sole_writer(out):
        remove_temporaries(out)
        shards = list(plan(source, out, settings))
        num_removed = remove_dataset(out) if fresh else 0
        with ThreadPoolExecutor(NUM_CHECKS) as pool:
            found = list(zip(shards, pool.map(standing, shards), strict=True))
        refuse_strangers(out, shards)
        claim(source, out, settings)
        missing = [shard for shard, there in found if there is Standing.MISSING]
        renewal = Renewal(out, [shard for shard, there in found if there is Standing.LACKING])
        if missing:
            _withdraw_dataset(out)
        stages = engine([*missing, *renewal.unmade()])
        forget_listing(out)
        if renewal:
            _withdraw_dataset(out)
        num_made = len(missing) + renewal.take_places()
        dataset = finish(source, out, settings, shards)
        renewal.remove()
        remove_temporaries(out)  # of tasks that died and were tried again
        if not is_local(out):
            (out / CLAIM_NAME).unlink(missing_ok=True)
        return Outcome(
            dataset=dataset,
            num_made=num_made,
            num_kept=len(shards) - num_made,
            stages=stages,
            num_removed=num_removed,
        )


def _withdraw_dataset(out: Path) -> None:
    """No data set until it is whole again."""
    (out / DATASET_NAME).unlink(missing_ok=True)


def finish(
    source: Source, out: Path, settings: Settings, planned: list[PlannedShard]
) -> Dataset:
    """Writes indices, quarantine.jsonl and, last, dataset.json, from the receipts of all shards.

    ValueError where not one file of a split could be prepared, or where an engine made a shard
    with other settings (another machine's libraries). OSError where one is not there.
    """
    splits: dict[str, Split] = {}
    quarantined: list[dict[str, Any]] = []
    for name in dict.fromkeys(shard.split for shard in planned):
        of_split = [shard for shard in planned if shard.split == name]
        numbers = [shard.number for shard in of_split]
        receipts = [made_receipt(out, name, number) for number in numbers]
        for shard, receipt in zip(of_split, receipts, strict=True):
            refuse_other_settings(shard, receipt)
        entries = sorted((e for r in receipts for e in r.quarantined), key=lambda e: int(e["id"]))
        rows = np.concatenate([read_rows(out, name, number) for number in numbers])
        if len(rows) == 0:
            raise ValueError(
                f"none of the {len(entries)} originals of {name} could be prepared; the "
                f"first, {entries[0]['source']}: {entries[0]['reason']}"
            )
        shards = tuple(
            Shard(name=r.shard, samples=r.samples, bytes=r.bytes, sha256=r.sha256)
            for r in receipts
        )
        splits[name] = Split(
            shards=shards,
            found=len(source.splits[name]),
            written=len(rows),
            quarantined=len(entries),
            enlarged=sum(r.enlarged for r in receipts),
            source_bytes=sum(r.source_bytes for r in receipts),
            fingerprint=fingerprint(shards),
            index_sha256=write_index(out, name, rows),
        )
        assert splits[name].found == splits[name].written + splits[name].quarantined
        quarantined.extend(entries)
    lines = "".join(json.dumps(entry) + "\n" for entry in quarantined)
    write_whole(out / QUARANTINE_NAME, lines.encode())
    dataset = Dataset(
        folder=out, classes=source.classes, settings=settings.as_dict(), splits=splits
    )
    write_dataset(dataset)
    return dataset
