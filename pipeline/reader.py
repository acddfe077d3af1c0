"""The encoded bytes of coming steps, read ahead by threads into a ring of buffers."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from isal.isal_zlib import crc32  # ten times as fast as zlib's
from numpy.typing import NDArray

from pipeline.latch import Latch
from pipeline.open_shards import ShardSource
from pipeline.order import Rows
from pipeline.ranges import shown
from pipeline.shards import Index

ROW_ALIGNMENT_BYTES = 64
Wait = Callable[[], object]
Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]  # np.empty, or what does the same


@dataclass(frozen=True)
class StepBytes:
    """The encoded images of a step: data uint8 (N, longest), of which image i has sizes[i, 0].

    Raw images come without their .npy header: data is (N, 196608), that is (N, 256, 256, 3).
    """

    data: NDArray[np.uint8]
    sizes: NDArray[np.int32]  # (N, 1)


@dataclass
class _Request:
    """A step being read into buffer `slot`. errors: by the number of the part that failed."""

    slot: int
    step: StepBytes
    parts: Latch
    errors: dict[int, BaseException] = field(default_factory=dict)
    is_dropped: bool = False


class Reader:
    """Reads steps in the order they are requested, `depth` of them at most at a time.

    shards: where they are read from, closed with the reader. header: what every image begins with
    and the reader passes over (RAW_HEADER of raw images). allocate: where a buffer of this shape
    and type comes from, such as page-locked memory.
    request(rows) … take() … release(): the oldest request is taken, its buffer is reused once it
    is released. Every image's size and crc32 is checked; ValueError from take() names the shard
    and the sample whose bytes are not those written.
    """

    def __init__(
        self,
        shards: ShardSource,
        index: Index,
        *,
        header: bytes = b"",
        max_rows: int,
        depth: int,
        num_threads: int,
        allocate: Allocate = np.empty,
    ) -> None:
        assert max_rows >= 1 and depth >= 1 and num_threads >= 1
        longest = int(index["size"].max(initial=1)) - len(header)
        longest += -longest % ROW_ALIGNMENT_BYTES
        self._header_bytes, self._header_sum = len(header), crc32(header)
        self._index = index
        self._shards = shards
        self._buffers = [
            StepBytes(allocate((max_rows, longest), np.uint8), np.zeros((max_rows, 1), np.int32))
            for _ in range(depth)
        ]
        self._still_read: list[Wait | None] = [None] * depth  # of each buffer
        self._free = deque(range(depth))
        self._requested: deque[_Request] = deque()
        self._taken: deque[int] = deque()
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fullfeed-read")

    @property
    def has_room(self) -> bool:
        """Whether a buffer is free for another request."""
        return bool(self._free)

    @property
    def is_ready(self) -> bool:
        """Whether the oldest request has been read, so that take() would not wait."""
        return bool(self._requested) and self._requested[0].parts.is_open

    def request(self, rows: Rows) -> StepBytes:
        """Begins to read the images of these index rows, int64 (N,), N within 1..max_rows.

        Returns where they come to lie: to be looked at when they were taken. Called in a thread
        that gets no signals (Ctrl-C), which may be another than that of the rest.
        """
        slot = self._free.popleft()
        buffer = self._buffers[slot]
        chosen = self._index[rows]
        buffer.sizes[: len(rows), 0] = chosen["size"] - self._header_bytes
        # Rows are sorted by shard and offset: each thread gets a run of neighbours on the disk.
        parts = np.array_split(np.argsort(rows), min(self._num_threads, len(rows)))
        step = StepBytes(buffer.data[: len(rows)], buffer.sizes[: len(rows)])
        request = _Request(slot, step, Latch(len(parts)))
        for number, places in enumerate(parts):
            self._pool.submit(self._read_part, request, number, places.tolist(), chosen[places])
        self._requested.append(request)
        return step

    @shown("wait for bytes")
    def take(self) -> StepBytes:
        """The oldest request's bytes, valid until it is released; waits until they are read."""
        request = self._requested[0]
        # All end, also where one fails: the buffer may be given to another step then. Interrupted
        # here (Ctrl-C), the step stays requested, and clear() waits for it.
        request.parts.wait()
        self._taken.append(request.slot)
        self._requested.popleft()
        if request.errors:
            raise request.errors[min(request.errors)]
        return request.step

    def release(self, still_reading: Wait | None = None) -> None:
        """Gives the buffer of the oldest step taken back to be read into.

        still_reading: returns when the buffer may be written to; a reading thread calls it first.
        """
        slot = self._taken.popleft()
        self._still_read[slot] = still_reading
        self._free.append(slot)

    def clear(self) -> None:
        """Forgets every request; what was taken counts as released."""
        for request in self._requested:
            request.is_dropped = True
        for request in self._requested:
            request.parts.wait()  # its buffer is written no more
        self._requested.clear()
        self._taken.clear()
        self._free = deque(range(len(self._buffers)))

    def close(self) -> None:
        """Ends the threads and closes the shards."""
        self.clear()
        self._pool.shutdown()
        self._shards.close()

    def _read_part(
        self, request: _Request, number: int, places: list[int], chosen: Index
    ) -> None:
        """Reads part `number` of a request, in one of the pool's threads."""
        try:
            if not request.is_dropped:
                self._read(request.slot, places, chosen)
        except BaseException as error:  # raised again by take()
            request.errors[number] = error
        finally:
            request.parts.count_down()

    @shown("read")
    def _read(self, slot: int, places: list[int], chosen: Index) -> None:
        data, still_reading = self._buffers[slot].data, self._still_read[slot]
        if still_reading is not None:
            still_reading()
        shards, sums = chosen["shard"].tolist(), chosen["crc32"].tolist()
        offsets = (chosen["offset"] + self._header_bytes).tolist()
        sizes = (chosen["size"] - self._header_bytes).tolist()
        memory, longest = data.reshape(-1).data, data.shape[1]
        shard = None
        for i, place in enumerate(places):
            view = memory[place * longest : place * longest + sizes[i]]
            if shard is None or shards[i] != shards[i - 1]:
                shard = self._shards.get(shards[i])
            try:
                got = os.preadv(shard.descriptor, [view], offsets[i])
            except OSError as error:
                raise ValueError(
                    f"{shard.path}, sample {chosen['id'][i]}: cannot be read ({error.strerror}); "
                    f"where the disk is sound, {shard.mend}"
                ) from error
            if got != sizes[i] or crc32(view, self._header_sum) != sums[i]:
                short = f"the file ends after {got} of its {sizes[i]} bytes"
                what = short if got != sizes[i] else "its bytes are not those written"
                raise ValueError(
                    f"{shard.path}, sample {chosen['id'][i]}: {what}; the shard was changed or "
                    f"damaged, {shard.mend}"
                )
