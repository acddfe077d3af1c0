"""The making of shards from a plan: one task each, then the files that tie them together.

A task depends on nothing but the plan and the originals, so shards are byte-identical for any
number of workers and restarts.
"""

import errno
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from pipeline.atomic import is_local, remove_temporaries, sole_writer, write_whole
from pipeline.images import SIZE_PX, ImageError, decode_stored, encode, fit
from pipeline.manifest import (
    CLAIM_NAME,
    DATASET_NAME,
    FORMAT_VERSION,
    QUARANTINE_NAME,
    Dataset,
    Receipt,
    Shard,
    Split,
    canonical_hash,
    fingerprint,
    read_receipt,
    receipt_path,
    remove_dataset,
    write_dataset,
    write_receipt,
)
from pipeline.moments import Sums
from pipeline.originals import Checksums, FilePlaces, Listing, Source
from pipeline.photographs import decode
from pipeline.plan import (
    UNREADABLE,
    PlannedShard,
    Settings,
    ShardTask,
    claim,
    is_finished,
    plan,
    refuse_inside,
    refuse_strangers,
)
from pipeline.shards import (
    COMPONENTS,
    ShardWriter,
    Written,
    dali_index_path,
    read_rows,
    shard_stem,
    write_index,
    write_sums,
)
from pipeline.tally import Tally

Stages = Counter[str]  # seconds per stage: read, decode, resize, encode, verify, sums, write
Engine = Callable[[list[PlannedShard]], Stages]  # makes the shards of tasks, see engines.py
NUM_CHECKS = 16  # receipts looked at together: an object store answers each in tens of ms
# What is wrong with one file alone; any other OSError (a disk, a network) ends the preparation.
ONE_FILE_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENOENT, errno.ENXIO,
}  # fmt: skip


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
            finished = list(pool.map(is_finished, shards))
        refuse_strangers(out, shards)
        claim(source, out, settings)
        missing = [shard for shard, there in zip(shards, finished, strict=True) if not there]
        if missing:
            (out / DATASET_NAME).unlink(missing_ok=True)  # no data set until it is whole again
        stages = engine(missing)
        dataset = finish(source, out, settings, shards)
        remove_temporaries(out)  # of tasks that died and were tried again
        if not is_local(out):
            (out / CLAIM_NAME).unlink(missing_ok=True)
        return Outcome(
            dataset=dataset,
            num_made=len(missing),
            num_kept=len(shards) - len(missing),
            stages=stages,
            num_removed=num_removed,
        )


def make_shard(task: ShardTask, advance: Callable[[Tally], None]) -> Stages:
    """Makes one shard: tar, DALI index, exact sums, and last its receipt.

    advance: called after every original with what it adds. Returns the seconds spent per stage.
    An original that cannot become a sample is quarantined; OSError (disk full, source gone) ends
    the task.
    """
    receipt_path(task.out, task.split, task.number).unlink(missing_ok=True)
    maker = _Maker(task)
    tar_path = task.out / f"{task.stem}.tar"
    component = COMPONENTS[task.settings.image_format.encoding]
    with ShardWriter(tar_path, task.number, component) as writer:
        labels = task.originals.labels.tolist()
        for position, (sample_id, label) in enumerate(zip(task.ids.tolist(), labels, strict=True)):
            encoded, added = maker.make(position)
            if encoded is not None:
                writer.add(sample_id, label, encoded)
            maker.lap("write")
            advance(added)
    assert writer.written is not None
    write_whole(dali_index_path(task.out, task.split, task.number), writer.written.dali_index)
    rows = writer.written.rows
    write_sums(task.out, task.split, task.number, maker.sums, rows, maker.source_crc32)
    write_receipt(task.out, task.number, _receipt(task, maker, writer.written))
    maker.lap("write")
    return maker.stages


def finish(
    source: Source, out: Path, settings: Settings, planned: list[PlannedShard]
) -> Dataset:
    """Writes indices, quarantine.jsonl and, last, dataset.json, from the receipts of all shards.

    ValueError where not one file of a split could be prepared.
    """
    splits: dict[str, Split] = {}
    quarantined: list[dict[str, Any]] = []
    for name in dict.fromkeys(shard.split for shard in planned):
        numbers = [shard.number for shard in planned if shard.split == name]
        receipts = [_receipt_of(out, name, number) for number in numbers]
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


class _HugeFileError(ImageError):
    """A file that no photograph fills: only its checksums were taken."""

    def __init__(self, reason: str, checksums: Checksums) -> None:
        super().__init__(reason)
        self.checksums = checksums


class _Maker:
    """Originals into stored images, with what must be known of them: sums, quarantine, seconds."""

    def __init__(self, task: ShardTask) -> None:
        self.sums = Sums()
        self.quarantined: list[dict[str, Any]] = []
        self.source_crc32: list[int] = []  # of every original; 0 where it could not be read
        self.enlarged = 0
        self.tally = Tally()
        self.stages: Stages = Counter()
        self._task = task
        self._num_bytes, self._crc32 = 0, 0  # of the original in hand
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Counts the time since the last lap as spent on `stage`."""
        now = time.perf_counter()
        self.stages[stage] += now - self._last  # type: ignore[assignment]  # typeshed: int only
        self._last = now

    def make(self, position: int) -> tuple[bytes | None, Tally]:
        """The stored form of one original, decoded again and summed; None where quarantined.

        With it, what the original adds to the account.
        """
        encoded = self._make(position)
        added = Tally(
            images=1, quarantined=int(encoded is None), source_bytes=self._num_bytes
        )
        self.tally += added
        self.source_crc32.append(self._crc32)
        return encoded, added

    def _make(self, position: int) -> bytes | None:
        image_format = self._task.settings.image_format
        originals = self._task.originals
        data: bytes | None = None
        self._num_bytes, self._crc32 = 0, 0
        try:
            data = _read(originals, position)
            self._num_bytes, self._crc32 = len(data), crc32(data)
            self.lap("read")
            pixels = decode(data, ignore_orientation=image_format.ignore_orientation)
        except MemoryError as error:
            name = os.fsdecode(originals.names[position])
            raise OSError(f"out of memory while decoding {name}: use fewer --workers") from error
        except _HugeFileError as error:
            found = error.checksums
            self._num_bytes, self._crc32 = found.num_bytes, found.crc32
            self._quarantine(position, error, found.sha256)
            return None
        except ImageError as error:
            sha256 = None if data is None else hashlib.sha256(data).hexdigest()
            self._quarantine(position, error, sha256)
            return None
        self.lap("decode")
        self.enlarged += min(pixels.shape[:2]) < SIZE_PX
        pixels = fit(pixels)
        self.lap("resize")
        encoded = encode(pixels, image_format)
        self.lap("encode")
        pixels = decode_stored(encoded)
        self.lap("verify")
        self.sums.add(pixels)
        self.lap("sums")
        return encoded

    def _quarantine(self, position: int, error: ImageError, sha256: str | None) -> None:
        entry = {
            "source": os.fsdecode(self._task.originals.names[position]),
            "split": self._task.split,
            "id": int(self._task.ids[position]),
            "reason": str(error),
            "sha256": sha256,
        }
        self.quarantined.append(entry)


def _read(originals: Listing, position: int) -> bytes:
    """An original's bytes; ImageError where that one file is at fault, OSError where more is."""
    try:
        return originals.places.read(position)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not _is_link(originals, position):
            raise OSError(
                f"{os.fsdecode(error.filename)} was listed and is gone: the source changed or was "
                "unmounted; start again when it is whole, finished shards are kept"
            ) from error
        if error.errno == errno.EFBIG and isinstance(originals.places, FilePlaces):
            checksums = originals.places.checksums(position)
            raise _HugeFileError(f"too large: {error.strerror}", checksums) from error
        if error.errno in ONE_FILE_ERRORS:
            what = "broken symbolic link" if error.errno == errno.ENOENT else error.strerror
            raise ImageError(f"{UNREADABLE}: {what}") from error
        raise


def _is_link(originals: Listing, position: int) -> bool:
    places = originals.places
    return isinstance(places, FilePlaces) and os.path.islink(places.path(position))


def _receipt(task: ShardTask, maker: _Maker, written: Written) -> Receipt:
    settings = task.settings.as_dict()
    return Receipt(
        format_version=FORMAT_VERSION,
        shard=f"{task.stem}.tar",
        split=task.split,
        samples=len(written.rows),
        bytes=written.num_bytes,
        sha256=written.sha256,
        enlarged=maker.enlarged,
        source_bytes=maker.tally.source_bytes,
        quarantined=maker.quarantined,
        settings=settings,
        settings_hash=canonical_hash(settings),
        plan_hash=task.plan_hash,
    )


def _receipt_of(folder: Path, split: str, number: int) -> Receipt:
    receipt = read_receipt(folder, split, number)
    assert receipt is not None, f"{shard_stem(split, number)} has no receipt after preparation"
    return receipt
