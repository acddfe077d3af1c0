"""Which image goes to which shard: a pure function of the source's listing and the settings."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from isal.isal_zlib import crc32

from pipeline.atomic import create_once, is_local
from pipeline.images import ImageFormat
from pipeline.manifest import (
    CLAIM_NAME,
    Receipt,
    canonical_hash,
    read_receipt,
    receipt_path,
)
from pipeline.shards import read_source_crc32, shard_stem
from pipeline.originals import Ids, Listing, Source

PLAN_VERSION = 1
UNREADABLE = "unreadable"  # begins the reason of an original that may be readable another time
PLAN_TAG = 0x706C616E  # "plan": keeps this stream of random numbers apart from every other


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides the bytes of the shards, apart from the originals."""

    image_format: ImageFormat = field(default_factory=ImageFormat)
    images_per_shard: int = 1000
    shuffle_seed: int = 0
    val_fraction: float | None = None  # of train, set apart as val

    def __post_init__(self) -> None:
        if self.images_per_shard < 1:
            raise ValueError(f"images per shard must be at least 1, not {self.images_per_shard}")
        if not 0 <= self.shuffle_seed < 2**64:
            raise ValueError(f"shuffle seed must be within 0..2**64-1, not {self.shuffle_seed}")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The settings that `as_dict` gave, by this program's codecs; ValueError if damaged."""
        try:
            return cls(
                image_format=ImageFormat.from_settings(settings),
                images_per_shard=settings["images_per_shard"],
                shuffle_seed=settings["shuffle_seed"],
                val_fraction=settings["val_fraction"],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"the settings in dataset.json are damaged ({error!r}); prepare again, finished "
                "shards are kept: tools/prepare_shards.py SOURCE --out SHARDS"
            ) from error

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, as dataset.json and the receipts hold it."""
        return {
            **self.image_format.settings(),
            "images_per_shard": self.images_per_shard,
            "shuffle_seed": self.shuffle_seed,
            "val_fraction": self.val_fraction,
            "plan_version": PLAN_VERSION,
        }


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that is needed to make one shard, wherever it runs."""

    out: Path
    split: str
    number: int
    ids: Ids
    originals: Listing  # those of the ids, in their order
    settings: Settings

    @property
    def stem(self) -> str:
        """The shard's name without an ending."""
        return shard_stem(self.split, self.number)

    @property
    def plan_hash(self) -> str:
        """SHA-256 over ids, labels and names: another listing gives another hash."""
        digest = hashlib.sha256()
        labels = self.originals.labels.tolist()
        for sample_id, label, name in zip(
            self.ids.tolist(), labels, self.originals.names, strict=True
        ):
            digest.update(b"%d %d %d " % (sample_id, label, len(name)) + name)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A shard of the plan, without its originals' names: millions of these fit into memory."""

    source: Source
    out: Path
    split: str
    number: int
    ids: Ids
    settings: Settings

    def task(self) -> ShardTask:
        """All that is needed to make it."""
        return ShardTask(
            out=self.out,
            split=self.split,
            number=self.number,
            ids=self.ids,
            originals=self.source.splits[self.split].take(self.ids),
            settings=self.settings,
        )


def plan(source: Source, out: Path, settings: Settings) -> Iterator[PlannedShard]:
    """The shards to make: per split, a permutation of the sample ids cut into equal runs."""
    for place, (split, listing) in enumerate(source.splits.items()):
        num_found = len(listing)
        if num_found == 0:
            continue
        key = np.array([settings.shuffle_seed, PLAN_TAG], np.uint64)  # a list becomes float64
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, place]))
        num_shards = -(-num_found // settings.images_per_shard)
        for number, run in enumerate(np.array_split(generator.permutation(num_found), num_shards)):
            yield PlannedShard(
                source=source, out=out, split=split, number=number, ids=run, settings=settings
            )


def is_finished(shard: PlannedShard) -> bool:
    """Whether this shard is there with a valid receipt, and nothing it lacks can be read now.

    ValueError where its receipt was written with other settings or for other originals: shards of
    different making are never mixed.
    """
    receipt = read_receipt(shard.out, shard.split, shard.number)
    if receipt is None:
        return False
    settings = shard.settings.as_dict()
    if receipt.settings_hash != canonical_hash(settings):
        _refuse(shard, f"with other settings ({_difference(receipt.settings, settings)})")
    task = shard.task()
    root = shard.source.root
    if receipt.plan_hash != task.plan_hash:
        _refuse(shard, f"from other originals (files added, removed or renamed in {root}?)")
    lacking = _unread(task, receipt)
    if any(_can_be_read(task.originals, position) for position in lacking.tolist()):
        return False
    counted = np.setdiff1d(np.arange(len(task.ids)), lacking)  # in the receipt's source_bytes
    if task.originals.take(counted).places.num_bytes() not in (None, receipt.source_bytes):
        _refuse(shard, f"from originals of another size (files of {root} have changed)")
    _refuse_other_bytes(shard, task)
    return True


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


def _refuse_other_bytes(shard: PlannedShard, task: ShardTask) -> None:
    """ValueError where an original has other bytes now than the shard was made from.

    Only those are read whose file was changed since the receipt was written.
    """
    places = task.originals.places
    written = receipt_path(shard.out, shard.split, shard.number).stat()
    touched = places.changed_since(written.st_mtime_ns)
    expected = read_source_crc32(shard.out, shard.split, shard.number) if touched else None
    for position in touched:
        try:
            data = places.read(position)
        except OSError:
            continue  # it could be read when the shard was made, which has it
        if expected is not None and crc32(data) != expected[position]:
            name = os.fsdecode(task.originals.names[position])
            _refuse(shard, f"from other bytes of {name} (it has changed in {shard.source.root})")


def _refuse(shard: PlannedShard, how: str) -> None:
    raise ValueError(
        f"{shard.out / shard_stem(shard.split, shard.number)}.tar was made {how}; give another "
        "--out, or --fresh to remove the shards there and start over"
    )


def _difference(there: Any, here: Any, name: str = "") -> str:
    """Names each setting that differs: quality is 90 there, 80 here."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return f"{name} is {there} there, {here} here"
    names = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return "; ".join(_difference(there.get(key), here.get(key), key) for key in names)
