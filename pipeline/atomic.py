"""Files that appear whole or not at all."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def is_local(path: Path) -> bool:
    """Whether a path is of this machine's file system and not of an object store."""
    return getattr(path, "fs", None) is None  # universal_pathlib's paths have one


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only when the block ends without an exception.

    path: a local file, or one on an object store (see locations.py), where an object appears when
    its upload ends. A local one is written beside `path` as `.tmp`, flushed to the disk, then
    renamed over it (POSIX renames are atomic). What an exception or a kill leaves behind is a
    `.tmp` that nothing reads and that the next try overwrites. OSError as the file system raises.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            with open(local, "wb") as file:
                yield file
            try:
                getattr(path, "fs").put_file(str(local), getattr(path, "path"))
            except OSError as error:
                raise OSError(f"{path} cannot be written: {error}") from error
        return
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` as the file `path`, whole or not at all."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keeps a second process from writing into a local folder while the block runs.

    OSError where another one does. The lock is the folder's own and goes with the process; an
    object store has none, and two writers there put whole objects of equal bytes.
    """
    if not is_local(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"another process is writing into {folder}; wait for it") from error
        yield
    finally:
        os.close(descriptor)
