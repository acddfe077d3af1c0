"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only when the block ends without an exception.

    path: a local file, or one on an object store (see locations.py), where an object appears when
    its upload ends. A local one is written beside `path` as `.tmp`, flushed to the disk, then
    renamed over it (POSIX renames are atomic). What an exception or a kill leaves behind is a
    `.tmp` that nothing reads and that the next try overwrites. OSError as the file system raises.
    """
    file_system = getattr(path, "fs", None)  # of universal_pathlib
    if file_system is not None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            with open(local, "wb") as file:
                yield file
            try:
                file_system.put_file(str(local), getattr(path, "path"))
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
