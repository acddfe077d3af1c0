"""Memory that the processes of this machine share, and that goes when the last of them ends."""

import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path("/dev/shm")  # a file system in memory; shared by name, and only for a moment
MAX_USERS = 255


def shared_array(name: str, num_bytes: int, num_users: int) -> NDArray[np.uint8]:
    """uint8 (num_bytes,), zeros at first, the same for all who ask by the same name.

    The memory has a name until `num_users` have it: then the name goes, and the memory with the
    last of them, however they end. Whoever asks after that begins anew. What is left where some
    are killed before the last has come is removed when anybody asks next. OSError where there is
    not so much memory, all of which is taken at once: later there would be no error but a signal.
    """
    assert 1 <= num_users <= MAX_USERS
    digest = hashlib.blake2b(f"{name} {num_bytes}".encode(), digest_size=16).hexdigest()
    path = FOLDER / f"{_prefix()}{digest}"
    with _one_at_a_time():
        _remove_abandoned()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return _joined(path, descriptor, num_bytes, num_users)
        finally:
            os.close(descriptor)


def folder_bytes() -> int:
    """How much memory files there may take, all together; 0 where there is no such folder."""
    if not FOLDER.is_dir():
        return 0
    found = os.statvfs(FOLDER)
    return found.f_blocks * found.f_frsize


def _joined(path: Path, descriptor: int, num_bytes: int, num_users: int) -> NDArray[np.uint8]:
    size = num_bytes + 1  # the last byte counts who has come
    try:
        if os.fstat(descriptor).st_size != size:
            os.posix_fallocate(descriptor, 0, size)
        # Held as long as the mapping, which has a duplicate of the descriptor: it is in use.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        memory = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
    except OSError:
        path.unlink()
        raise
    memory[-1] += 1
    if memory[-1] >= num_users:
        path.unlink()
    return memory[:-1]


def _remove_abandoned() -> None:
    for path in FOLDER.glob(f"{_prefix()}*"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where it is in use
                path.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Among the processes of this user on this machine."""
    lock = FOLDER / f"fullfeed.{os.getuid()}.lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _prefix() -> str:
    return f"fullfeed-{os.getuid()}-"
