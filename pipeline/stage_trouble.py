"""What keeps a staged shard from coming, how long a reader waits then, and what it is told."""

import errno
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.byte_size import show_bytes
from pipeline.manifest import Shard
from pipeline.stage_folder import Elsewhere, StageFolder

ROOM_SECONDS = 120.0  # a reader waits for others to let go of their shards
REST_SECONDS = 30.0  # before a shard that could not be brought ahead of use is tried again


class StageTrouble:
    """Of one epoch: shards that failed, are brought by others, or found no room.

    A shard that failed while nobody waited for it costs nothing yet: it is tried again after
    REST_SECONDS, and at once where a reader wants it. Only a transfer that began when a reader
    waited already is that reader's error. To be guarded by its owner's lock.
    """

    def __init__(self, source: Path, shards: Sequence[Shard], folder: StageFolder) -> None:
        self._source, self._shards, self._folder = source, shards, folder
        self._failed: dict[int, str] = {}
        self._rests_until: dict[int, float] = {}
        self._elsewhere: dict[int, tuple[Elsewhere, float]] = {}  # how far it is since when
        self._full: dict[int, tuple[float, str]] = {}  # no room for it since when, as said then

    def forget(self) -> None:
        """Another epoch begins."""
        self._failed.clear()
        self._rests_until.clear()
        self._elsewhere.clear()
        self._full.clear()

    def failed(self, number: int, error: OSError, *, demanded: bool) -> None:
        """Shard `number` could not be brought; demanded: a reader waited when that began."""
        if demanded:
            self._failed[number] = self._explain(number, error)
        else:
            self._rests_until[number] = time.monotonic() + REST_SECONDS

    def at_rest(self, demanded: Collection[int]) -> set[int]:
        """The shards that are not to be brought now."""
        now = time.monotonic()
        resting = {number for number, until in self._rests_until.items() if until > now}
        return self._failed.keys() | resting.difference(demanded)

    @property
    def will_be_tried_again(self) -> bool:
        """Whether the end of some shard's rest is to be waited for."""
        return bool(self._rests_until)

    def begins(self, number: int) -> None:
        """Shard `number` is there, or a transfer of it begins here."""
        self._rests_until.pop(number, None)
        self._elsewhere.pop(number, None)
        self._full.clear()  # room comes free: those that wait for more begin to count anew

    def is_elsewhere(self, number: int, now_there: Elsewhere) -> None:
        """Another process brings shard `number`, and came as far as this."""
        self._full.pop(number, None)
        last = self._elsewhere.get(number)
        if last is None or last[0] != now_there:
            self._elsewhere[number] = now_there, time.monotonic()

    def has_no_room(self, queue: Sequence[int], full: str) -> None:
        """What others use leaves too little for the first of these; the rest queue behind it."""
        self._elsewhere.pop(queue[0], None)
        for number in queue:
            if number not in self._elsewhere:
                self._full.setdefault(number, (time.monotonic(), full))

    def require_hope(self, number: int, started: float) -> None:
        """ValueError where who waits for shard `number`, since `started`, waits in vain."""
        if number in self._failed:
            raise ValueError(self._failed[number])
        name, now = self._shards[number].name, time.monotonic()
        if number in self._full:
            since, full = self._full[number]
            if now - max(since, started) > ROOM_SECONDS:
                raise ValueError(
                    f"no room for {name} for {ROOM_SECONDS:g} s: {full}, also by other processes; "
                    "give a larger --stage-bytes, or a --stage-dir of its own"
                )
        if number in self._elsewhere:
            there, since = self._elsewhere[number]
            patience = self._folder.patience_seconds
            if now - max(since, started) > patience:
                raise ValueError(
                    f"{name} is being brought by another process into {there.path}, to which "
                    f"nothing was added for {patience:g} s: continue or end that process (`fuser "
                    f"{there.path}` names it; its file goes with it), or give a --stage-dir of "
                    "your own; stage_patience_seconds is how long to wait"
                )

    def _explain(self, number: int, error: OSError) -> str:
        shard = self._shards[number]
        url = self._source / shard.name
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of --stage-dir is full, {shard.name} ({show_bytes(shard.bytes)}) did "
                f"not fit: free some of it, or give a smaller --stage-bytes than "
                f"{show_bytes(self._folder.max_bytes)}"
            )
        said = str(error.strerror or error)
        if error.filename is not None and str(error.filename) != str(url):
            said = f"{error.filename}: {said}"  # of --stage-dir
        return f"shard {shard.name} cannot be brought from {url}: {said}"
