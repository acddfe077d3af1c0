"""One shard from its originals: each becomes a sample, or is accounted for with the reason.

A task depends on nothing but the plan and the originals, so shards are byte-identical for any
number of workers and restarts.
"""

import errno
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from isal.isal_zlib import crc32

from pipeline.atomic import write_whole
from pipeline.images import SIZE_PX, ImageError, decode_stored, encode, fit
from pipeline.moments import Sums
from pipeline.originals import Checksums, FilePlaces, Listing, Places
from pipeline.photographs import decode
from pipeline.plan import ShardTask
from pipeline.receipt import (
    FORMAT_VERSION,
    UNREADABLE,
    Receipt,
    canonical_hash,
    receipt_path,
    write_receipt,
)
from pipeline.shards import COMPONENTS, ShardWriter, Written, dali_index_path, write_sums
from pipeline.tally import Tally

# Seconds per split and stage: read, decode, resize, encode, verify, sums, write.
Stages = Counter[tuple[str, str]]
# What is wrong with one file alone.
ONE_FILE_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENOENT, errno.ENXIO,
}  # fmt: skip
# Of one bad place on a disk, or of all of it: EUCLEAN (Linux) is a file system's checksum.
DISK_ERRORS = {errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)}
# Of one file, or of all where a disk that links lead to was unmounted or mounted for others.
ACCESS_ERRORS = {errno.ENOENT, errno.EACCES, errno.EPERM}
MAX_DISK_ERRORS = 8  # of originals that follow each other in a shard; more is no bad place


def make_shard(task: ShardTask, advance: Callable[[Tally], None]) -> Stages:
    """Makes one shard: tar, DALI index, exact sums, and last its receipt.

    advance: called after every original with what it adds. Returns the seconds spent per stage.
    An original that cannot become a sample is quarantined, one on a bad place of a disk as well.
    OSError ends the task: a full disk, a source that is gone, a disk that reads nothing any more
    (MAX_DISK_ERRORS originals in a row, or all of a shard; broken links and files without
    permission count as well, but for a shard's only one).
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


class _DiskError(ImageError):
    """An original that the disk does not give."""

    cause = "the disk, or the connection to it, fails"


class _AccessError(_DiskError):
    """An original that is not there or not ours to read: by itself, or with all of its disk."""

    cause = (
        "is the disk that they lie on mounted, and may its files be read? Where they are gone for "
        "good, take them out of the source"
    )


class _HugeFileError(ImageError):
    """A file that no photograph fills: only its checksums were taken."""

    def __init__(self, reason: str, checksums: Checksums) -> None:
        super().__init__(reason)
        self.checksums = checksums


class _Disk:
    """Whether the disk of the originals fails as a whole: those in a row that it did not give."""

    def __init__(self) -> None:
        self._failed: list[bytes] = []

    def gave(self) -> None:
        """An original could be read."""
        self._failed.clear()

    def failed(self, name: bytes, error: _DiskError, num_originals: int) -> None:
        """This one could not; OSError where that is no bad place any more."""
        self._failed.append(name)
        is_alone = isinstance(error, _AccessError) and len(self._failed) == 1
        if len(self._failed) in (MAX_DISK_ERRORS, num_originals) and not is_alone:
            raise OSError(
                f"{len(self._failed)} originals in a row cannot be read, {os.fsdecode(name)} the "
                f"last ({error}): {error.cause}"
            ) from error


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
        self._disk = _Disk()
        self._num_bytes, self._crc32 = 0, 0  # of the original in hand
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Counts the time since the last lap as spent on `stage`."""
        now = time.perf_counter()
        seconds: Any = now - self._last  # typeshed knows of counts that are int only
        self.stages[self._task.split, stage] += seconds
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
        data: bytes | None = None
        self._num_bytes, self._crc32 = 0, 0
        try:
            data = self._read(position)
            self.lap("read")
            pixels = decode(data, ignore_orientation=image_format.ignore_orientation)
        except MemoryError as error:
            name = os.fsdecode(self._task.originals.names[position])
            raise OSError(f"out of memory while decoding {name}: use fewer --workers") from error
        except _HugeFileError as error:
            self._quarantine(position, error, error.checksums.sha256)
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

    def _read(self, position: int) -> bytes:
        originals = self._task.originals
        try:
            data = _read(originals, position)
        except _DiskError as error:
            self._disk.failed(originals.names[position], error, len(self._task.ids))
            raise
        except _HugeFileError as error:
            self._disk.gave()
            self._num_bytes, self._crc32 = error.checksums.num_bytes, error.checksums.crc32
            raise
        self._disk.gave()
        self._num_bytes, self._crc32 = len(data), crc32(data)
        return data

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
        return _bytes_of(originals.places, position)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not _is_link(originals, position):
            raise OSError(
                f"{os.fsdecode(error.filename)} was listed and is gone: the source changed or was "
                "unmounted; start again when it is whole, finished shards are kept"
            ) from error
        if error.errno in ONE_FILE_ERRORS:
            what = "broken symbolic link" if error.errno == errno.ENOENT else error.strerror
            kind = _AccessError if error.errno in ACCESS_ERRORS else ImageError
            raise kind(f"{UNREADABLE}: {what}") from error
        if error.errno in DISK_ERRORS:
            raise _DiskError(f"{UNREADABLE}: {error.strerror}") from error
        raise


def _bytes_of(places: Places, position: int) -> bytes:
    """OSError as the file system raises it; _HugeFileError where a file is not to be held."""
    try:
        return places.read(position)
    except OSError as error:
        if error.errno != errno.EFBIG or not isinstance(places, FilePlaces):
            raise
        checksums = places.checksums(position)
        raise _HugeFileError(f"too large: {error.strerror}", checksums) from error


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
