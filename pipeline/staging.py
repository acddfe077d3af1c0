"""Shards on an object store, brought to a bounded local folder ahead of use.

One thread claims what the coming steps need, in their order; each shard that is not there is
brought by a thread of its own. What this loader holds, others (ranks, validation) leave alone, and
it lets go of a shard as soon as the last step that uses it was delivered.
"""

import concurrent.futures.thread
import hashlib
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from pipeline.byte_size import show_bytes
from pipeline.manifest import Shard
from pipeline.open_shards import OpenShard
from pipeline.order import Window
from pipeline.stage_folder import Download, Elsewhere, NoRoom, StageFolder
from pipeline.stage_plan import StagePlan, plan_stage, require_files, require_room
from pipeline.stage_trouble import StageTrouble
from pipeline.transfer import Stopped, fetch

NUM_TRANSFERS = 4  # at a time, of one loader
POLL_SECONDS = 0.1  # between looks at what other processes do, while a reader waits
IDLE_POLL_SECONDS = 1.0  # while none does


class Stage:
    """The shards of a split as a reader's source, staged while an epoch is read.

    source: the folder, here or on an object store, of `shards`. window: of the order, 1 for
    validation. steps_ahead: that are read beyond the next one to be delivered. ValueError where
    what is read at one time does not fit into the folder's bound, or is more files than a process
    may open.
    """

    def __init__(
        self,
        source: Path,
        shards: Sequence[Shard],
        folder: StageFolder,
        *,
        window: Window,
        steps_ahead: int,
    ) -> None:
        self._source, self._shards, self._folder = source, shards, folder
        self._steps_ahead = steps_ahead
        self._num_ahead = len(shards) if window == "all" else max(window, NUM_TRANSFERS)
        require_room(source, [shard.bytes for shard in shards], window, folder.max_bytes)
        most_held = len(shards) if window == "all" else 2 * window + self._num_ahead
        require_files(source, min(most_held, len(shards)), window)
        self._step = 0
        self._plan: StagePlan | None = None
        self._turns: frozenset[int] = frozenset()
        self._staged: dict[int, OpenShard] = {}  # held: nobody evicts them
        self._transfers: dict[int, threading.Thread] = {}
        self._demanded: set[int] = set()  # a reader waits for them
        self._trouble = StageTrouble(source, shards, folder)
        self._changed = threading.Condition()  # guards all of the above
        # Not an event: Ctrl-C in Event.set() would leave its lock taken; see pipeline/latch.py.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, coming: NDArray[np.integer], batch_size: int, step: int) -> None:
        """Stages what the rest of an epoch needs, from now on; see `plan_stage`.

        ValueError where the steps read ahead need more shards at a time than the bound holds.
        """
        assert not self._closing.is_set()  # nobody would bring anything
        plan = plan_stage(coming, batch_size, step, self._steps_ahead)
        most_bytes = plan.most_bytes([shard.bytes for shard in self._shards])
        if most_bytes > self._folder.max_bytes:
            raise ValueError(
                f"batches of {batch_size}, {self._steps_ahead} of them read ahead, need shards of "
                f"{show_bytes(most_bytes)} at a time, --stage-bytes is "
                f"{show_bytes(self._folder.max_bytes)}; give a larger one"
            )
        with self._changed:
            self._plan, self._step, self._turns = plan, step, plan.turns()
            self._trouble.forget()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fullfeed-stage", daemon=True)
            self._thread.start()
        self._wake.put(None)

    def passed(self, step: int) -> None:
        """Says that every step before `step` was delivered; costs next to nothing."""
        self._step = step
        if step in self._turns:
            self._wake.put(None)

    def get(self, number: int) -> OpenShard:
        """Shard `number`, as soon as it is there.

        ValueError naming shard, URL and what happened where it cannot be brought, and where others
        use all the room, or hold the shard and do nothing, for too long (see StageTrouble);
        Stopped where the epoch was left meanwhile.
        """
        started = time.monotonic()
        with self._changed:
            while (staged := self._staged.get(number)) is None:
                if self._plan is None or _program_ends():
                    raise Stopped
                self._trouble.require_hope(number, started)
                if number not in self._demanded:
                    self._demanded.add(number)
                    self._wake.put(None)
                self._changed.wait(IDLE_POLL_SECONDS)  # then looks at the clock
            self._demanded.discard(number)
            return staged

    def interrupt(self) -> None:
        """Leaves the epoch: lets go of every shard, and of every reader that waits for one."""
        with self._changed:
            self._plan = None
            self._staged.clear()
            self._demanded.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the transfers under way and the threads; their partial files are removed."""
        self.leave()
        if self._thread is not None:
            self._thread.join()
        for transfer in list(self._transfers.values()):
            transfer.join()

    def leave(self) -> None:
        """Has all that `close` ends end by itself, and waits for nothing."""
        self.interrupt()
        self._closing.set()
        self._wake.put(None)

    def _run(self) -> None:
        """Claims what is wanted, whenever that changes or others may have changed the folder."""
        waits = False
        while True:
            poll_seconds = POLL_SECONDS if self._demanded else IDLE_POLL_SECONDS
            with suppress(Empty):
                self._wake.get(timeout=poll_seconds if waits else None)
                while True:
                    self._wake.get_nowait()
            if self._closing.is_set():
                return
            with self._changed:
                missing, demanded = self._look(), frozenset(self._demanded)
            try:
                waits = self._claim(missing, demanded)
            except OSError as error:
                with self._changed:
                    for number in missing:
                        self._trouble.failed(number, error, demanded=number in demanded)
                    self._changed.notify_all()
            waits = waits or self._trouble.will_be_tried_again

    def _look(self) -> list[int]:
        """Lets go of what is no longer wanted; returns what is wanted and not on its way."""
        if self._plan is None:
            return []
        planned = self._plan.wanted(self._step, self._num_ahead)
        wanted = list(dict.fromkeys([*sorted(self._demanded), *planned]))
        for number in self._staged.keys() - set(wanted):
            del self._staged[number]
        there = self._staged.keys() | self._transfers.keys()
        there |= self._trouble.at_rest(self._demanded)
        return [number for number in wanted if number not in there]

    def _claim(self, missing: Sequence[int], demanded: frozenset[int]) -> bool:
        """Takes what is there, begins to bring the rest; whether others are to be waited for."""
        waits = False
        for place, number in enumerate(missing):
            if len(self._transfers) >= NUM_TRANSFERS:
                break  # the end of one wakes this thread
            try:
                claimed = self._folder.claim(self._shards[number])
            except NoRoom as full:
                self._give_room(missing[place:], str(full))
                return True
            with self._changed:
                if isinstance(claimed, Elsewhere):
                    self._trouble.is_elsewhere(number, claimed)
                    waits = True
                    continue
                self._trouble.begins(number)
            if isinstance(claimed, Download):
                self._begin_transfer(number, claimed, number in demanded)
            else:
                self._put(number, claimed)
        return waits

    def _give_room(self, queue: Sequence[int], full: str) -> None:
        """What is only staged ahead makes way for the first of these where that is needed now."""
        with self._changed:
            if not self._transfers:  # else what is on its way here may make way, once it came
                self._trouble.has_no_room(queue, full)
            if self._plan is None:
                return
            needed = {*self._plan.wanted(self._step, 0), *self._demanded}
            for other in self._staged.keys() - needed if queue[0] in needed else ():
                del self._staged[other]

    def _begin_transfer(self, number: int, download: Download, demanded: bool) -> None:
        # A pool would refuse work, and its readers wait for ever, once the interpreter ends.
        arguments = number, download, demanded
        thread = threading.Thread(target=self._bring, args=arguments, daemon=True)
        with self._changed:
            self._transfers[number] = thread
        thread.start()

    def _bring(self, number: int, download: Download, demanded: bool) -> None:
        """Downloads one shard, checks it, and holds it where it is still wanted.

        demanded: whether a reader waits for it already.
        """
        shard = self._shards[number]
        try:
            fetch(
                self._source / shard.name,
                download.path,
                lambda: _require_shard(download.path, shard),
                max_bytes=shard.bytes,
                stopped=self._closing,
            )
            self._put(number, self._folder.finish(download))
        except (OSError, Stopped) as error:
            self._folder.abandon(download)
            if isinstance(error, OSError):
                with self._changed:
                    self._trouble.failed(number, error, demanded=demanded)
        finally:
            with self._changed:
                del self._transfers[number]
                self._changed.notify_all()
            self._wake.put(None)

    def _put(self, number: int, shard: OpenShard) -> None:
        with self._changed:
            if self._plan is not None:
                self._staged[number] = shard
                self._changed.notify_all()


def _program_ends() -> bool:
    """Whether the interpreter waits for the threads of its pools, a reader's among them.

    It asks nobody before; without this a loader that was never closed would keep a program that
    ends until its last transfer came through or was given up.
    """
    return bool(getattr(concurrent.futures.thread, "_shutdown", False))


def _require_shard(path: Path, shard: Shard) -> None:
    """OSError where a file is not the shard."""
    num_bytes = path.stat().st_size
    if num_bytes != shard.bytes:
        raise OSError(f"it ended after {num_bytes} of {shard.bytes} bytes")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        raise OSError(
            f"its SHA-256 is {found[:12]}…, dataset.json says {shard.sha256[:12]}…: it was "
            "changed or replaced there"
        )
