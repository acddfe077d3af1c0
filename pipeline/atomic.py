"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only when the block ends without an exception.

    Written beside `path` as `.tmp`, flushed to the disk, then renamed over it (POSIX renames are
    atomic). What an exception or a kill leaves behind is a `.tmp` that nothing reads and that the
    next try overwrites. OSError as the file system raises it.
    """
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
