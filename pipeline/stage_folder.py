"""A local folder of staged shards that processes share: one download each, never over its bound.

Nobody keeps an account that a kill could leave wrong. What is held is what lies there; what is in
use, or being downloaded, is locked by an open descriptor (flock), which goes with its process:

- `stage.lock` is held for the moment in which shards are claimed, evicted or finished;
- `KEY-NAME.tar` is a finished shard, locked shared by everybody who needs it, evicted by nobody
  who cannot lock it alone; its modification time is that of its last claim;
- `KEY-NAME.tar.BYTES.part` is a shard on its way, locked by whoever downloads it; its BYTES count
  as held from the beginning. One that nobody locks was left by a dead process, and is removed.

KEY is the beginning of the shard's SHA-256, so shards of many data sets can lie side by side.
"""

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.byte_size import show_bytes
from pipeline.manifest import Shard
from pipeline.open_shards import OpenShard

LOCK_NAME = "stage.lock"
NUM_KEY_DIGITS = 16
FREE_SHARE = 0.9  # of the disk, where no bound is given
PATIENCE_SECONDS = 600.0  # with another process; its tries of a transfer may last for 5 minutes
LOCK_POLL_SECONDS = 0.01
STAGED = re.compile(rf"[0-9a-f]{{{NUM_KEY_DIGITS}}}-.+\.tar")
PARTIAL = re.compile(rf"({STAGED.pattern})\.(\d+)\.part")


class NoRoom(Exception):
    """Everything in the folder is in use; what it says is how much."""


@dataclass(frozen=True)
class Download:
    """A shard that this process is to bring: its locked file, to be filled."""

    path: Path
    descriptor: int


@dataclass(frozen=True)
class Elsewhere:
    """A shard that another process brings: its file, and how far that is."""

    path: Path
    num_bytes: int
    changed_ns: int


class StageFolder:
    """The folder, with the most bytes that may lie in it.

    max_bytes: None is nine tenths of what is free there, what is staged already included.
    patience_seconds: for which a process that holds a lock in the folder may do nothing.
    ValueError where the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._folder, self.patience_seconds = folder, patience_seconds
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                held = sum(self._held().values())
                if max_bytes is None:
                    max_bytes = int((shutil.disk_usage(folder).free + held) * FREE_SHARE)
        except OSError as error:
            raise ValueError(f"--stage-dir {folder} cannot be used: {error.strerror}") from error
        self.max_bytes = max_bytes

    def claim(self, shard: Shard) -> OpenShard | Download | Elsewhere:
        """The shard where it is there, else the right to download it, its room taken.

        Elsewhere while another process downloads it. NoRoom where what is in use leaves too
        little. OSError, TimeoutError among them where the folder stays locked.
        """
        path = self._folder / f"{shard.sha256[:NUM_KEY_DIGITS]}-{shard.name}"
        with self._locked():
            if (staged := _claim_staged(path, shard.bytes)) is not None:
                return staged
            held = self._held()
            part = path.with_name(f"{path.name}.{shard.bytes}.part")
            if part in held:
                status = part.stat()
                return Elsewhere(part, status.st_size, status.st_mtime_ns)
            self._make_room(held, shard.bytes)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return Download(part, descriptor)

    def finish(self, download: Download) -> OpenShard:
        """The downloaded shard, from now on there for everybody."""
        os.fsync(download.descriptor)
        _mark_used(download.descriptor)
        found = PARTIAL.fullmatch(download.path.name)
        assert found
        path = download.path.with_name(found[1])
        with self._locked():
            os.replace(download.path, path)
            fcntl.flock(download.descriptor, fcntl.LOCK_SH)
        return _open_shard(path, download.descriptor)

    def abandon(self, download: Download) -> None:
        """Gives up a download: its file goes, and its room is free.

        Where the folder cannot be locked the file stays, unlocked: whoever looks next removes it.
        """
        try:
            with suppress(OSError), self._locked():
                download.path.unlink(missing_ok=True)
        finally:
            os.close(download.descriptor)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps every other process and thread from claiming or evicting meanwhile."""
        path = self._folder / LOCK_NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path, self.patience_seconds)
            yield
        finally:
            os.close(descriptor)

    def _held(self) -> dict[Path, int]:
        """Bytes of each file in the folder that counts; removes what dead processes left."""
        held = {}
        for path in self._folder.iterdir():
            if STAGED.fullmatch(path.name):
                held[path] = path.stat().st_size
            elif (found := PARTIAL.fullmatch(path.name)) and not _remove_unlocked(path):
                held[path] = int(found[2])
        return held

    def _make_room(self, held: dict[Path, int], num_bytes: int) -> None:
        """Evicts the least recently claimed shards that nobody uses until `num_bytes` fit in."""
        room = self.max_bytes - sum(held.values())
        staged = [path for path in held if STAGED.fullmatch(path.name)]
        for path in sorted(staged, key=lambda path: path.stat().st_mtime_ns):
            if room >= num_bytes:
                break
            if _remove_unlocked(path):
                room += held[path]
        if room < num_bytes:
            raise NoRoom(
                f"{show_bytes(self.max_bytes - room)} of the {show_bytes(self.max_bytes)} of "
                f"{self._folder} are in use"
            )


def _lock(descriptor: int, path: Path, patience_seconds: float) -> None:
    """Takes a lock that others hold for moments only; TimeoutError where one keeps it."""
    started = time.monotonic()
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - started > patience_seconds:
                what = (
                    f"another process has locked the folder for {patience_seconds:g} s; continue "
                    f"or end it (`fuser {path}` names it)"
                )
                raise TimeoutError(errno.ETIMEDOUT, what, str(path)) from None
        time.sleep(LOCK_POLL_SECONDS)


def _claim_staged(path: Path, num_bytes: int) -> OpenShard | None:
    """A finished shard, locked against eviction; None where there is none of that size."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != num_bytes:  # cut by somebody's hand
        os.close(descriptor)
        path.unlink()
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _mark_used(descriptor)
    return _open_shard(path, descriptor)


def _open_shard(path: Path, descriptor: int) -> OpenShard:
    return OpenShard(path, descriptor, f"delete {path}, it will be brought anew")


def _mark_used(descriptor: int) -> None:
    now = time.time_ns()  # finer than the file system's own clock, whose ticks are milliseconds
    os.utime(descriptor, ns=(now, now))


def _remove_unlocked(path: Path) -> bool:
    """Removes a file unless somebody holds a lock on it; returns whether it did."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
