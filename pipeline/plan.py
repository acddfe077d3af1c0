"""Which image goes to which shard: a pure function of the source's listing and the settings."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from pipeline.images import ImageFormat
from pipeline.originals import Ids, Listing, Source
from pipeline.shards import shard_stem

PLAN_VERSION = 1
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
