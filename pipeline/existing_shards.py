"""What lies in a shard folder already, against a plan: finished, to be made, or refused."""

import os
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from pipeline.atomic import create_once, is_local
from pipeline.manifest import CLAIM_NAME
from pipeline.originals import Ids, Listing, Source
from pipeline.plan import PlannedShard, Settings, ShardTask
from pipeline.receipt import UNREADABLE, Receipt, canonical_hash, read_receipt, receipt_path
from pipeline.shards import read_source_crc32, shard_stem


class Standing(Enum):
    """How much of a planned shard is there."""

    MISSING = auto()  # no valid receipt: it does not exist
    LACKING = auto()  # whole, but an original that could not be read can be read now
    FINISHED = auto()


def standing(shard: PlannedShard) -> Standing:
    """How much of this shard is there.

    ValueError where its receipt was written with other settings or for other originals: shards of
    different making are never mixed.
    """
    receipt = read_receipt(shard.out, shard.split, shard.number)
    if receipt is None:
        return Standing.MISSING
    refuse_other_settings(shard, receipt)
    task = shard.task()
    root = shard.source.root
    if receipt.plan_hash != task.plan_hash:
        _refuse(shard, f"from other originals (files added, removed or renamed in {root}?)")
    lacking = _unread(task, receipt)
    counted = np.setdiff1d(np.arange(len(task.ids)), lacking)  # in the receipt's source_bytes
    if task.originals.take(counted).places.num_bytes() not in (None, receipt.source_bytes):
        _refuse(shard, f"from originals of another size (files of {root} have changed)")
    _refuse_other_bytes(shard, task, counted)
    if any(_can_be_read(task.originals, position) for position in lacking.tolist()):
        return Standing.LACKING
    return Standing.FINISHED


def refuse_other_settings(shard: PlannedShard, receipt: Receipt) -> None:
    """ValueError where a receipt was written with other settings, naming what differs."""
    settings = shard.settings.as_dict()
    if receipt.settings_hash != canonical_hash(settings):
        _refuse(shard, f"with other settings ({difference(receipt.settings, settings)})")


def _unread(task: ShardTask, receipt: Receipt) -> Ids:
    """The positions of the originals that could not be read when the shard was made."""
    ids = [e["id"] for e in receipt.quarantined if e["reason"].startswith(UNREADABLE)]
    return np.flatnonzero(np.isin(task.ids, ids))


def _can_be_read(originals: Listing, position: int) -> bool:
    try:
        originals.places.read(position)
    except OSError:
        return False  # as before: the shard would become the same again
    return True


def refuse_inside(source: Source, out: Path) -> None:
    """ValueError where shards would be written among the originals, and be taken for some."""
    if not is_local(out):
        return
    here, root = out.resolve(), source.root.resolve()
    walked = [root] if source.format == "tree" else [root / split for split in source.splits]
    if here == root or any(here.is_relative_to(folder) for folder in walked):
        raise ValueError(f"--out {out} lies among the originals in {source.root}; give another")


def refuse_strangers(out: Path, shards: list[PlannedShard]) -> None:
    """ValueError where the folder has finished shards that this plan does not have."""
    planned = {receipt_path(out, shard.split, shard.number).name for shard in shards}
    strangers = sorted(path.name for path in out.glob("*.receipt.json"))
    strangers = [name for name in strangers if name not in planned]
    if strangers:
        raise ValueError(
            f"{out} holds {len(strangers)} shards that are not of this source and these settings "
            f"({strangers[0].removesuffix('.receipt.json')}.tar first); give another --out, or "
            "--fresh to remove the shards there and start over"
        )


def claim(source: Source, out: Path, settings: Settings) -> None:
    """Says, on an object store, what is being made there; ValueError where it is something else.

    It locks nobody out who makes the same: equal bytes are written twice, which does no harm, and
    a claim that a killed preparation left behind holds up nothing but other settings or originals.
    """
    if is_local(out):
        return
    found = {name: len(listing) for name, listing in source.splits.items()}
    what = {"settings": settings.as_dict(), "classes": source.classes, "found": found}
    mine = (canonical_hash(what) + "\n").encode()
    if create_once(out / CLAIM_NAME, mine) != mine:
        raise ValueError(
            f"{out} is being prepared with other settings or from other originals "
            f"({CLAIM_NAME}); give another --out, or, if that preparation ended, --fresh to "
            "remove what it left and start over"
        )


def _refuse_other_bytes(shard: PlannedShard, task: ShardTask, counted: Ids) -> None:
    """ValueError where an original has other bytes now than the shard was made from.

    counted: the positions of those that could be read then. Only those are read whose file was
    changed since the receipt was written.
    """
    places = task.originals.places
    written = receipt_path(shard.out, shard.split, shard.number).stat()
    touched = np.intersect1d(places.changed_since(written.st_mtime_ns), counted).tolist()
    if not touched:
        return
    expected = read_source_crc32(shard.out, shard.split, shard.number)
    for position in touched:
        try:
            data = places.read(position)
        except OSError:
            continue  # it could be read when the shard was made, which has it
        if crc32(data) != expected[position]:
            name = os.fsdecode(task.originals.names[position])
            _refuse(shard, f"from other bytes of {name} (it has changed in {shard.source.root})")


def _refuse(shard: PlannedShard, how: str) -> None:
    raise ValueError(
        f"{shard.out / shard_stem(shard.split, shard.number)}.tar was made {how}; give another "
        "--out, or --fresh to remove the shards there and start over"
    )


def difference(there: Any, here: Any, name: str = "") -> str:
    """Names each setting that differs: quality is 90 there, 80 here."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return f"{name} is {there} there, {here} here"
    names = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return "; ".join(difference(there.get(key), here.get(key), key) for key in names)
