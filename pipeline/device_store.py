"""The backend of a split kept in a GPU's memory: crops are cut there, from what is there."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backends import RenderSettings, Work
from pipeline.copies import Copies, Event, GpuCopies, HostCopies
from pipeline.gather import gather_crop, gather_whole
from pipeline.order import Rows
from pipeline.ranges import shown
from pipeline.raw import DTYPES
from pipeline.reference import decoded
from pipeline.resident import FORMATS, HostStore, share_of
from pipeline.subsampled import subsampled


@dataclass
class _Slot:
    """What a step brings along, on the host in page-locked memory and on the device."""

    first: int  # of its images in the store's memory
    images: Tensor  # uint8 (max rows, …), in the store's format, on the host
    numbers: Tensor  # int64 (max rows, 5), on the host: place, home, x, y, flip of each image
    offsets: Tensor  # float32 (max rows, 3), on the host
    there: tuple[Tensor, Tensor]  # numbers and offsets on the device
    used: Event  # its memory on the device may be written to again
    num_rows: int = 0
    num_brought: int = 0  # images that were not on the device
    num_homes: int = 0  # of these, the first ones that stay there
    homes: NDArray[np.int64] | None = None
    lit: bool = False
    filled: tuple[Future[None], ...] = ()
    copied: Event | None = None


PLACE, HOME, CROP = 0, 1, slice(2, 5)  # of a slot's numbers


def num_slots_of(settings: RenderSettings) -> int:
    """How many steps a store has room for besides the images it keeps."""
    return settings.depth + 1


class DeviceStore:
    """Keeps rows `rank`, `rank` + `num_ranks`, … of a split on settings.device, and renders steps.

    An image that is not there yet is decoded by threads into page-locked memory and copied in a
    stream of its own; one that another rank keeps comes from `host`, the ranks' common store, in
    the same way, every time. The crops of a step are cut in one pass over images on the device, in
    what is torch's current stream when the step is taken. With settings.device None, the same code
    on the CPU.
    """

    still_reading = None  # a step is taken when its bytes were decoded

    def __init__(
        self,
        settings: RenderSettings,
        num_images: int,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        host: HostStore | None = None,
        copies: Copies | None = None,
        image_format: str = "rgb",
    ) -> None:
        """host: of the same format; None where nobody asks for an image that another rank keeps.

        image_format: of resident.FORMATS.
        """
        self._settings, self._host = settings, host
        self._halves, self._shape = image_format == "yuv420", FORMATS[image_format]
        self._rank, self._num_ranks = rank, num_ranks
        on_cpu = settings.device is None
        self._device = torch.device("cpu" if on_cpu else f"cuda:{settings.device}")
        if copies is None:
            copies = HostCopies() if on_cpu else GpuCopies(self._device)
        self._copies = copies
        num_own, num_slots = share_of(num_images, num_ranks), num_slots_of(settings)
        shape = (num_own + num_slots * settings.max_rows, *self._shape)
        self._images = torch.empty(shape, dtype=torch.uint8, device=self._device)
        self._num_own = num_own
        self._known = np.zeros(num_own, np.bool_)  # images at home, by row // num_ranks
        self._pool = ThreadPoolExecutor(settings.num_threads, thread_name_prefix="fullfeed-render")
        self._free = deque(self._slot(number) for number in range(num_slots))
        self._begun: deque[_Slot] = deque()
        self._written: Event | None = None  # the last that stayed are at home

    def known(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of these index rows need not be read, (N,)."""
        found = self._at_home(rows)
        return found if self._host is None else found | self._host.known(rows)

    def prepare(self, work: Work) -> Work:
        """As it is."""
        return work

    @shown("submit")
    def submit(self, prepared: Work) -> None:
        """Begins to decode what is not kept; its bytes must stay until the step is taken."""
        work, slot = prepared, self._free.popleft()
        assert work.rows is not None
        if slot.copied is not None:
            slot.copied.synchronize()  # long past: it was copied depth + 1 steps ago
        n = slot.num_rows = len(work.rows)
        brought = self._lay_out(slot, work.rows)
        numbers = slot.numbers.numpy()
        numbers[:n, CROP] = work.crop
        slot.lit = work.offsets is not None
        if work.offsets is not None:
            slot.offsets[:n] = torch.from_numpy(work.offsets)
        num_tasks = min(len(brought), 4 * self._settings.num_threads)
        slot.filled = tuple(
            self._pool.submit(self._fill, slot, work, brought, part)
            for part in np.array_split(np.arange(len(brought)), num_tasks or 1)
            if len(part)
        )
        slot.copied = None
        self._begun.append(slot)
        self._copy_what_is_filled()

    @shown("take")
    def take(self) -> Tensor:
        """The oldest step, NHWC, in the current stream of its device."""
        slot = self._begun.popleft()
        errors = [future.exception() for future in slot.filled]  # all end, also where one fails
        for error in errors:
            if error is not None:
                self._free.append(slot)
                raise error
        if slot.copied is None:
            self._copy(slot)
        self._copy_what_is_filled()
        assert slot.copied is not None
        self._copies.wait(slot.copied)
        if self._written is not None:
            self._copies.wait(self._written)
        pixels = self._cut(slot)
        self._move_home(slot)
        slot.used = self._written = self._copies.mark()
        self._free.append(slot)
        return pixels

    def clear(self) -> None:
        """Forgets what was submitted, once nothing of it is read or written any more."""
        while self._begun:
            slot = self._begun.popleft()
            wait(slot.filled)
            self._free.append(slot)

    def close(self) -> None:
        """Ends the threads and frees the memory."""
        self.clear()
        self._pool.shutdown()
        for slot in self._free:
            slot.used.synchronize()  # torch would give its memory away by another stream's clock
        self._free.clear()
        self._images = torch.empty(0, dtype=torch.uint8)

    def _at_home(self, rows: Rows) -> NDArray[np.bool_]:
        own = rows % self._num_ranks == self._rank
        found: NDArray[np.bool_] = own & self._known[np.where(own, rows // self._num_ranks, 0)]
        return found

    def _lay_out(self, slot: _Slot, rows: Rows) -> NDArray[np.int64]:
        """Says where each image of a step lies; returns the positions of those to be brought.

        Those that are to stay come first.
        """
        at_home = self._at_home(rows)
        home = rows // self._num_ranks
        own = rows % self._num_ranks == self._rank
        staying = np.flatnonzero(own & ~at_home)
        brought = np.concatenate([staying, np.flatnonzero(~own)])
        numbers = slot.numbers.numpy()
        numbers[: len(rows), PLACE] = home
        numbers[brought, PLACE] = slot.first + np.arange(len(brought))
        numbers[: len(staying), HOME] = slot.homes = home[staying]
        slot.num_brought, slot.num_homes = len(brought), len(staying)
        return brought

    def _fill(
        self, slot: _Slot, work: Work, brought: NDArray[np.int64], part: NDArray[np.int64]
    ) -> None:
        """Brings a part of a step's images to the slot's memory on the host."""
        assert work.rows is not None and work.places is not None
        images = slot.images.numpy()
        for target in part.tolist():
            i = brought[target]
            row, place = int(work.rows[i]), int(work.places[i])
            if place < 0:
                assert self._host is not None
                images[target] = self._host.images[row]
                continue
            pixels = decoded(work.encoded, place, self._settings.encoding)
            images[target] = subsampled(pixels) if self._halves else pixels
            if self._host is not None:
                self._host.put(row, images[target])

    def _copy_what_is_filled(self) -> None:
        """Begins to copy steps ahead of their being taken, as far as they are decoded."""
        for slot in self._begun:
            if slot.copied is None and all(future.done() for future in slot.filled):
                if any(future.exception() for future in slot.filled):
                    return  # told when it is taken
                self._copy(slot)

    def _copy(self, slot: _Slot) -> None:
        n, m = slot.num_rows, slot.num_brought
        numbers, offsets = slot.there
        pairs = [(numbers[:n], slot.numbers[:n])]
        if slot.lit:
            pairs.append((offsets[:n], slot.offsets[:n]))
        if m:
            pairs.append((self._images[slot.first : slot.first + m], slot.images[:m]))
        slot.copied = self._copies.begin(pairs, after=slot.used)

    def _cut(self, slot: _Slot) -> Tensor:
        """What is shown of a step's images, or all of them as they are."""
        numbers, offsets = (part[: slot.num_rows] for part in slot.there)
        places = numbers[:, PLACE]
        if self._settings.full:
            return gather_whole(self._images, places)
        dtype = DTYPES[self._settings.dtype]
        lighting = offsets if slot.lit else None
        return gather_crop(self._images, places, numbers[:, CROP], lighting, dtype)

    def _move_home(self, slot: _Slot) -> None:
        """Keeps the images that were brought to stay."""
        if slot.num_homes:
            assert slot.homes is not None
            homes = slot.there[0][: slot.num_homes, HOME]
            brought = self._images[slot.first : slot.first + slot.num_homes]
            self._images[: self._num_own].index_copy_(0, homes, brought)
            self._known[slot.homes] = True

    def _slot(self, number: int) -> _Slot:
        rows, device = self._settings.max_rows, self._device
        pinned = device.type == "cuda"
        numbers = torch.zeros((rows, CROP.stop), dtype=torch.int64, pin_memory=pinned)
        offsets = torch.zeros((rows, 3), dtype=torch.float32, pin_memory=pinned)
        return _Slot(
            first=self._num_own + number * rows,
            images=torch.empty((rows, *self._shape), dtype=torch.uint8, pin_memory=pinned),
            numbers=numbers,
            offsets=offsets,
            there=(numbers.to(device, copy=True), offsets.to(device, copy=True)),
            used=self._copies.mark(),
        )
