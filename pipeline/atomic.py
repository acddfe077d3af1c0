"""Files that appear whole or not at all."""

import errno
import fcntl
import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = re.compile(r".+\.[0-9a-f]{16}\.tmp")
BESIDE_PREFIX = ".repair-"  # of a folder in the folder of shards, where some are made anew


def is_local(path: Path) -> bool:
    """Whether a path is of this machine's file system and not of an object store."""
    return getattr(path, "fs", None) is None  # universal_pathlib's paths have one


def require_place(path: Path, flag: str) -> None:
    """ValueError where no local file can appear at `path`: before work is done for it.

    flag: what named it, such as --json.
    """
    if path.is_dir():
        raise ValueError(f"{flag}: {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(
            f"{flag}: there is no folder {path.parent}; make it first: mkdir -p "
            f"{shlex.quote(str(path.parent))}"
        )
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"{flag}: no file can be made in {path.parent} ({error.strerror}); name another place"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only when the block ends without an exception.

    path: a local file, or one on an object store (see locations.py), where an object appears when
    its upload ends. A local one is written beside `path` under a name that no other writer has,
    flushed to the disk, then renamed over it (POSIX renames are atomic): of several writers one
    file stays, whole. A kill leaves a `.tmp` behind that nothing reads; see remove_temporaries.
    OSError as the file system raises.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            with open(local, "wb") as file:
                yield file
            put_whole(local, path)
        return
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # there may be none
            temporary.unlink()
        if isinstance(error, OSError) and _is_of(error, temporary):
            error.filename = os.fspath(path)  # the name that people know
        raise


def _is_of(error: OSError, temporary: Path) -> bool:
    """Whether an error is of this file; of a full disk, writing names none."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return bool(error.filename == os.fspath(temporary))


def put_whole(source: Path, path: Path) -> None:
    """Brings a file to `path` at once: moved on one file system, copied to or on a store."""
    store = getattr(path, "fs", None)
    if store is None:
        os.replace(source, path)
        return
    try:
        if is_local(source):
            store.put_file(str(source), getattr(path, "path"))
        else:
            store.cp_file(getattr(source, "path"), getattr(path, "path"))
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def forget_listing(folder: Path) -> None:
    """Has an object store asked anew what it holds: other processes have written there since."""
    store = getattr(folder, "fs", None)
    if store is not None:
        store.invalidate_cache()


def remove_temporaries(folder: Path) -> int:
    """Removes what killed writers and repairs left in a local folder; returns how many files.

    To be called by the folder's sole writer: a file that is being written would go as well.
    """
    if not is_local(folder):
        return 0
    left = [path for path in folder.glob("*.tmp") if TEMPORARY.fullmatch(path.name)]
    for path in left:
        path.unlink(missing_ok=True)
    for path in folder.glob(f"{BESIDE_PREFIX}*"):
        shutil.rmtree(path)
    return len(left)


def create_once(path: Path, data: bytes) -> bytes:
    """Writes `data` as the file `path` if there is none; returns what is there then.

    Of several writers at once the first one wins, on object stores that can create exclusively
    (S3 can); on others the last.
    """
    try:
        if is_local(path):
            with open(path, "xb") as file:
                file.write(data)
        else:
            getattr(path, "fs").pipe_file(getattr(path, "path"), data, mode="create")
    except FileExistsError:
        return path.read_bytes()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    return data


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` as the file `path`, whole or not at all."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keeps a second process from writing into a local folder while the block runs.

    OSError where another one does. The lock is the folder's own and goes with the process. An
    object store has none: there, prepare() lets in several that write the same bytes.
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
