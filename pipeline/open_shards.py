"""Open shards: what a reader reads from, by the shard's number."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

MAX_OPEN_SHARDS = 128


class OpenShard:
    """An open shard, closed when nobody holds it any more.

    mend: what to do, as a message says it, where the file is not what was written.
    """

    def __init__(self, path: Path, descriptor: int, mend: str) -> None:
        self.path, self.descriptor, self.mend = path, descriptor, mend

    def __del__(self) -> None:
        os.close(self.descriptor)


class ShardSource(Protocol):
    """Where a reader's threads get their shards from; safe to share between them."""

    def get(self, number: int) -> OpenShard:
        """Shard `number` of the split, once it is there; ValueError where it cannot be had."""

    def close(self) -> None:
        """Closes every shard that nobody holds."""


class LocalShards:
    """Shards read where they lie, the least recently used closed first."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> OpenShard:
        """Shard `number`; ValueError, with the next command, where it cannot be opened."""
        with self._lock:
            shard = self._open.pop(number, None) or _open_local(self._paths[number])
            self._open[number] = shard
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)  # whoever still reads from it holds it
            return shard

    def close(self) -> None:
        """Closes every shard that nobody holds."""
        with self._lock:
            self._open.clear()


def _open_local(path: Path) -> OpenShard:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); prepare again, only missing shards "
            f"are written: tools/prepare_shards.py SOURCE --out {path.parent}"
        ) from error
    return OpenShard(
        path, descriptor, f"mend it: tools/verify_shards.py {path.parent} --repair SOURCE"
    )
