"""Which image goes to which shard: a pure function of the source's listing and the settings."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.images import ImageFormat
from pipeline.manifest import canonical_hash, read_receipt
from pipeline.shards import shard_stem
from pipeline.sources import Source

PLAN_VERSION = 1
PLAN_TAG = 0x706C616E  # "plan": keeps this stream of random numbers apart from every other


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides the bytes of the shards, apart from the originals."""

    image_format: ImageFormat = field(default_factory=ImageFormat)
    images_per_shard: int = 1000
    shuffle_seed: int = 0

    def __post_init__(self) -> None:
        if self.images_per_shard < 1:
            raise ValueError(f"images per shard must be at least 1, not {self.images_per_shard}")
        if not 0 <= self.shuffle_seed < 2**64:
            raise ValueError(f"shuffle seed must be within 0..2**64-1, not {self.shuffle_seed}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, as dataset.json and the receipts hold it."""
        return {
            **self.image_format.settings(),
            "images_per_shard": self.images_per_shard,
            "shuffle_seed": self.shuffle_seed,
            "plan_version": PLAN_VERSION,
        }


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that is needed to make one shard, wherever it runs."""

    root: Path
    out: Path
    split: str
    number: int
    ids: tuple[int, ...]
    names: tuple[bytes, ...]
    labels: tuple[int, ...]
    settings: Settings

    @property
    def stem(self) -> str:
        """The shard's name without an ending."""
        return shard_stem(self.split, self.number)

    @property
    def plan_hash(self) -> str:
        """SHA-256 over ids, labels and names: another listing gives another hash."""
        digest = hashlib.sha256()
        for sample_id, label, name in zip(self.ids, self.labels, self.names, strict=True):
            digest.update(b"%d %d %d " % (sample_id, label, len(name)) + name)
        return digest.hexdigest()


def plan(source: Source, out: Path, settings: Settings) -> Iterator[ShardTask]:
    """The shards to make: per split, a permutation of the sample ids cut into equal runs."""
    for place, (split, listing) in enumerate(source.splits.items()):
        num_found = len(listing.names)
        if num_found == 0:
            continue
        key = np.array([settings.shuffle_seed, PLAN_TAG], np.uint64)  # a list becomes float64
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, place]))
        num_shards = -(-num_found // settings.images_per_shard)
        for number, run in enumerate(np.array_split(generator.permutation(num_found), num_shards)):
            ids = tuple(int(i) for i in run)
            yield ShardTask(
                root=source.root,
                out=out,
                split=split,
                number=number,
                ids=ids,
                names=tuple(listing.names[i] for i in ids),
                labels=tuple(listing.labels[i] for i in ids),
                settings=settings,
            )


def is_finished(task: ShardTask) -> bool:
    """Whether the shard of this task is there with a valid receipt.

    ValueError where its receipt was written with other settings or for other originals: shards of
    different making are never mixed.
    """
    receipt = read_receipt(task.out, task.split, task.number)
    if receipt is None:
        return False
    settings = task.settings.as_dict()
    if receipt.settings_hash != canonical_hash(settings):
        _refuse(task, f"with other settings ({_difference(receipt.settings, settings)})")
    if receipt.plan_hash != task.plan_hash:
        _refuse(task, f"from other originals (files added, removed or renamed in {task.root}?)")
    return True


def _refuse(task: ShardTask, how: str) -> None:
    raise ValueError(
        f"{task.out / task.stem}.tar was made {how}; give another --out, or --fresh to remove the "
        "shards there and start over"
    )


def _difference(there: Any, here: Any, name: str = "") -> str:
    """Names each setting that differs: quality is 90 there, 80 here."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return f"{name} is {there} there, {here} here"
    names = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return "; ".join(_difference(there.get(key), here.get(key), key) for key in names)
