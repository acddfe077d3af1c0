"""The originals of a split: names, labels, where their bytes lie; compact for many millions."""

import errno
import functools
import hashlib
import io
import os
import stat
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

OPEN_ARCHIVES = 128  # at a time in a process; ImageNet-21k has 21,841, systems allow 1,024
ITERATED_AT_ONCE = 1 << 16  # names; a list of all their ends would take more than they do
MAX_FILE_BYTES = 1 << 28  # no photograph is larger; a video among them is not read into memory
CHUNK_BYTES = 1 << 20  # of such a file at a time, for its checksums
Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """What tells a file's bytes from others without keeping them."""

    num_bytes: int
    crc32: int
    sha256: str


class Names:
    """Many byte strings in one, by position: a path takes its text plus 8 bytes."""

    def __init__(self, blob: bytes, ends: NDArray[np.int64]) -> None:
        self._blob = blob
        self._ends = ends  # ends: (name,), offset past each name

    @classmethod
    def pack(cls, names: Iterable[bytes]) -> Self:
        """Packs names in the order given."""
        buffer = io.BytesIO()
        lengths = np.fromiter((buffer.write(name) for name in names), np.int64)
        return cls(buffer.getvalue(), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, position: int) -> bytes:
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        position %= len(self)
        start = int(self._ends[position - 1]) if position else 0
        return self._blob[start : int(self._ends[position])]

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for first in range(0, len(self), ITERATED_AT_ONCE):
            for end in self._ends[first : first + ITERATED_AT_ONCE].tolist():
                yield self._blob[start:end]
                start = end

    def take(self, ids: Ids) -> "Names":
        """The names at these positions."""
        ends = self._ends[ids]
        starts = np.where(ids > 0, self._ends[ids - 1], 0)
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return Names.pack(self._blob[start:end] for start, end in spans)


class Places(Protocol):
    """Where the bytes of originals lie, by position; cheap to send to another process."""

    def take(self, ids: Ids, names: Names) -> "Places":
        """The places at these positions; `names` are theirs."""

    def read(self, position: int) -> bytes:
        """The bytes of an original; OSError as the file system raises it."""

    def num_bytes(self) -> int | None:
        """How large all of them are together; None where only reading would tell."""

    def changed_since(self, time_ns: int) -> list[int]:
        """The positions of those whose file, or archive, was changed at that time or later.

        By its change time (st_ctime), which no program sets back: changed owners and copies count
        too. What cannot be looked at is not among them.
        """


@dataclass(frozen=True)
class FilePlaces:
    """Files below a folder, where their names say."""

    root: Path
    names: Names

    def take(self, ids: Ids, names: Names) -> "FilePlaces":
        """The places at these positions."""
        return FilePlaces(self.root, names)

    def read(self, position: int) -> bytes:
        """The bytes of a file; OSError: EINVAL of a pipe or a device, EFBIG of a huge one."""
        with open(self.path(position), "rb", buffering=0, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, over {MAX_FILE_BYTES:,}")
            return file.readall()

    def checksums(self, position: int) -> Checksums:
        """Those of a regular file of any size, in little memory."""
        digest, check, num_bytes = hashlib.sha256(), 0, 0
        with open(self.path(position), "rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                check = crc32(chunk, check)
                num_bytes += len(chunk)
        return Checksums(num_bytes=num_bytes, crc32=check, sha256=digest.hexdigest())

    def num_bytes(self) -> int | None:
        """The sum of the files' sizes; None where one cannot be looked at."""
        try:
            return sum(os.stat(self.path(i)).st_size for i in range(len(self.names)))
        except OSError:
            return None

    def changed_since(self, time_ns: int) -> list[int]:
        """See Places; of a symbolic link either the link or its file."""
        return [i for i in range(len(self.names)) if _changed_ns(self.path(i)) >= time_ns]

    def path(self, position: int) -> str:
        """The path of a file."""
        return os.path.join(self.root, os.fsdecode(self.names[position]))


@dataclass(frozen=True)
class SpanPlaces:
    """Runs of bytes within archives: members of tar files, of tar files within tar files."""

    archives: tuple[Path, ...]
    archive: NDArray[np.uint32]  # (original,), position in `archives`
    offset: NDArray[np.int64]  # (original,)
    size: NDArray[np.int64]  # (original,)

    def take(self, ids: Ids, names: Names) -> "SpanPlaces":
        """The places at these positions."""
        return SpanPlaces(self.archives, self.archive[ids], self.offset[ids], self.size[ids])

    def num_bytes(self) -> int | None:
        """The sum of the members' sizes."""
        return int(self.size.sum())

    def changed_since(self, time_ns: int) -> list[int]:
        """See Places: all that lie in an archive that was changed."""
        return positions_in_changed(self.archives, self.archive, time_ns)

    def read(self, position: int) -> bytes:
        """The bytes of a member; OSError where the archive has become shorter."""
        path = self.archives[int(self.archive[position])]
        return read_span(path, int(self.offset[position]), int(self.size[position]))


def positions_in_changed(
    files: Sequence[Path], file: NDArray[np.uint32], time_ns: int
) -> list[int]:
    """The positions of the originals whose file was changed at that time or later.

    file: (original,), position of each one's in `files`.
    """
    changed = [number for number in np.unique(file) if _changed_ns(files[number]) >= time_ns]
    return np.flatnonzero(np.isin(file, changed)).tolist()


def _changed_ns(path: str | Path) -> int:
    """When a file, or a link to it, was changed last; -1 where it cannot be looked at."""
    try:
        return max(os.lstat(path).st_ctime_ns, os.stat(path).st_ctime_ns)
    except OSError:
        return -1


def read_span(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` of a file that is kept open; OSError where it ends before."""
    data = os.pread(_opened(path).descriptor, size, offset)
    if len(data) != size:
        raise OSError(f"{path} was cut off while it was read; start again when it is whole")
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file; a pipe too, that nobody writes to, without waiting for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


class _Opened:
    """A file's descriptor, closed when nobody has this any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


@functools.lru_cache(maxsize=OPEN_ARCHIVES)
def _opened(path: Path) -> _Opened:
    return _Opened(path)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The originals of a split; an original's position here is its sample id.

    names: relative POSIX paths or archive members (bytes), sorted bytewise. labels: int32,
    position of each original's class in `Source.classes`. ignored: files passed over because they
    are a file manager's litter, or belong to no class. strays: the names of the latter, where they
    lie beside class folders.
    """

    names: Names
    labels: NDArray[np.int32]
    places: Places
    ignored: int = 0
    strays: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def take(self, ids: Ids) -> "Listing":
        """The originals with these ids, in this order."""
        names = self.names.take(ids)
        return Listing(
            names=names, labels=self.labels[ids], places=self.places.take(ids, names)
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Originals of one or more splits, and the names of their classes.

    unlabelled: images of splits that are left out because nothing says their classes, by split.
    empty: names of train's class folders (or archives) without a file, which are no classes.
    """

    root: Path
    format: str
    classes: tuple[str, ...]
    splits: dict[str, Listing]
    unlabelled: dict[str, int] = field(default_factory=dict)
    empty: tuple[str, ...] = ()


def litter(name: bytes) -> bool:
    """Whether a file is a file manager's: .DS_Store, Thumbs.db, ._copies and the like."""
    base = name.rsplit(b"/", 1)[-1]
    return base[:1] == b"." or base.lower() in (b"thumbs.db", b"desktop.ini")


def sorted_listing(
    names: Sequence[bytes] | Names, labels: Sequence[int], places: Places, ignored: int = 0
) -> Listing:
    """A listing in bytewise order of the names, from originals in any order."""
    by_name = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    listing = Listing(
        names=Names.pack(names), labels=np.asarray(labels, np.int32), places=places
    ).take(by_name)
    return Listing(
        names=listing.names, labels=listing.labels, places=listing.places, ignored=ignored
    )
