"""Order, draws, reader and backend as one iterator of torch batches, cut and resumed anywhere."""

import os
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.ahead import Ahead
from pipeline.backends import RenderSettings, Work
from pipeline.class_mix import check_window
from pipeline.copies import pinned_empty
from pipeline.handover import Handover
from pipeline.images import RAW_HEADER
from pipeline.loader_config import LoaderConfig
from pipeline.manifest import open_dataset
from pipeline.moments import Statistics, read_statistics
from pipeline.open_shards import LocalShards
from pipeline.reader import Reader, StepBytes
from pipeline.reference import find_undecodable
from pipeline.renderer import Renderer
from pipeline.shards import Index, shard_stem
from pipeline.stage_folder import StageFolder
from pipeline.staging import Stage
from pipeline.steps import Step, Steps
from pipeline.waits import WaitClock, Waits

__all__ = ["Batch", "Loader", "LoaderConfig"]

NUM_READ_THREADS = 4
READ_AHEAD = 2  # steps read beyond those being rendered
NOTHING = StepBytes(np.empty((0, 0), np.uint8), np.empty((0, 1), np.int32))


@dataclass(frozen=True)
class Batch:
    """N images of a step, this rank's part of the global batch.

    images: (N, 3, 224, 224), channels-last memory, 0..255 units plus lighting, float16 on a GPU,
    float32 on the CPU; with views="full" uint8 (N, 3, 256, 256). labels: int64 (N,), with the
    images. ids: int64 (N,), sample ids, on the CPU. crop: int32 (N, 3) = x, y, flip, with the
    images. On a GPU all are ready in the stream that was current when the batch was asked for.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    crop: torch.Tensor


class Loader:
    """Batches of a split, epoch after epoch, as a function of (seed, epoch, step) alone.

    for batch in loader: … delivers what is left of the current epoch, then moves to the next; a
    loop that was left is continued by the next one. state_dict() is the position of the next
    batch, whatever was read ahead. ValueError, with the next command, for shards, statistics or a
    state that do not fit.
    """

    def __init__(self, config: LoaderConfig) -> None:
        self.config = config
        self.dataset = open_dataset(config.shards)
        self._fingerprint = self.dataset.fingerprint(config.split)
        self._index = index = self.dataset.index(config.split)
        if config.training and config.batch_size > len(index):
            raise ValueError(
                f"batch size {config.batch_size} is over the {len(index)} images of "
                f"{config.split}: not one whole batch; use a smaller one"
            )
        if config.training:
            check_window(index, config.window, f"{config.shards}, {config.split}")
        self._handover = handover = Handover(config.device)
        self._clock = WaitClock(handover.device)
        statistics = self._read_statistics()
        self._renderer = Renderer(
            config,
            self.dataset.encoding,
            handover,
            num_images=len(index),
            fingerprint=self._fingerprint,
        )
        self.backend = self._renderer.name
        self._depth = config.prefetch + READ_AHEAD  # steps begun at a time
        self._stage = self._open_stage()
        if self._stage is not None:  # one never closed would keep its shards from being evicted
            weakref.finalize(self, self._stage.leave)
        self._reader = self._open_reader(index)
        shard_sizes = [shard.samples for shard in self.dataset.split(config.split).shards]
        self._steps = Steps(config, index, shard_sizes, statistics)
        self._ahead: Ahead[_Prepared] = Ahead("fullfeed-prepare")
        self._process = os.getpid()
        self._epoch, self._step = 0, 0
        self._iterator: Iterator[Batch] | None = None
        if config.calibrate:
            self._calibrate()

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return len(self._steps)

    @property
    def waits(self) -> Waits:
        """How long the consumer of the batches waited so far, and for what."""
        return self._clock.waits()

    @property
    def data_wait_seconds(self) -> float:
        """All of `waits` together."""
        return self.waits.data_wait_seconds

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._epoch

    @property
    def step(self) -> int:
        """The step of the next batch within its epoch, from 0."""
        return self._step

    def set_epoch(self, epoch: int) -> None:
        """Moves to the beginning of `epoch`, unless the loader is in it already."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, not {epoch}")
        if epoch != self._epoch:
            self._stop()
            self._epoch, self._step = epoch, 0

    @property
    def settings(self) -> RenderSettings:
        """What the backend was opened with."""
        return self._renderer.settings

    @property
    def description(self) -> str:
        """The backend, why it was chosen, its threads and its decoder's load, for a person."""
        return self._renderer.description

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch and what it depends on; JSON-able.

        hw_decoder_load only tells how the pixels came about; exact loaders alone compare it.
        """
        fixed = self.config.fixed_state(self._fingerprint)
        told = {"hw_decoder_load": self._renderer.hw_decoder_load}
        return {**fixed, "epoch": self._epoch, "step": self._step, **told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`, which may come from other ranks, threads or backends.

        ValueError naming what differs: see LoaderConfig.position.
        """
        epoch, step = self.config.position(state, self._fingerprint, len(self))
        self._stop()
        self._epoch, self._step = epoch, step

    def __iter__(self) -> Iterator[Batch]:
        """The remaining batches of this epoch."""
        if os.getpid() != self._process:
            raise ValueError(
                "this loader was opened by another process, and its threads were not forked with "
                "it: open one in each process, by the same LoaderConfig"
            )
        self._stop()
        self._iterator = self._batches()
        return self._iterator

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads and frees the buffers."""
        self._stop()
        self._ahead.close()
        self._steps.close()
        self._renderer.backend.close()
        self._reader.close()

    def _batches(self) -> Iterator[Batch]:
        first = self._step
        coming = iter(range(first, len(self)))
        num_asked = 0  # steps being prepared; then they are read, rendered and delivered
        reading: deque[_Prepared] = deque()
        rendering: deque[_Prepared] = deque()
        while True:
            self._clock.start()
            while num_asked + len(reading) + len(rendering) < self._depth:
                if (number := next(coming, None)) is None:
                    break
                self._ahead.ask(self._prepare, self._epoch, number, number == first)
                num_asked += 1
            self._clock.handed_over()
            # Waits for a step's bytes only when nothing is being rendered.
            while num_asked and (self._ahead.is_ready or not (reading or rendering)):
                reading.append(self._ahead.take())
                num_asked -= 1
            while reading and len(rendering) < self.config.prefetch:
                if rendering and reading[0].reads and not self._reader.is_ready:
                    break
                self._submit(reading[0])
                rendering.append(reading.popleft())
            if not rendering:
                break
            batch = self._deliver(rendering.popleft())
            self._clock.handed_over()
            self._step += 1
            if self._stage is not None:
                self._stage.passed(self._step)
            yield batch
        self._epoch, self._step = self._epoch + 1, 0

    def _prepare(self, epoch: int, number: int, first: bool) -> "_Prepared":
        """Begins to read a step; done ahead by a thread. first: of those to come."""
        if first:
            self._stage_from(epoch, number)
        step = self._steps.step(epoch, number)
        unread = self._renderer.unread(step.rows)
        work = self._begin(step, unread)
        prepared = None if work is None else self._renderer.backend.prepare(work)
        return _Prepared(step, unread, None if work is None else work.encoded, prepared)

    def _stage_from(self, epoch: int, number: int) -> None:
        """Has what the rest of an epoch reads brought to the stage, where there is one."""
        if self._stage is not None:
            left = self._steps.rows_left(epoch, number)
            self._stage.begin(self._index["shard"][left], self.config.batch_size, number)

    def _begin(self, step: Step, unread: NDArray[np.int64]) -> Work | None:
        """Begins to read a step's images at these positions; None where it has no images."""
        if not len(step.rows):
            return None
        encoded = self._reader.request(step.rows[unread]) if len(unread) else NOTHING
        return self._renderer.work(step, encoded, unread)

    def _submit(self, prepared: "_Prepared") -> None:
        if prepared.work is not None:
            if prepared.reads:
                self._reader.take()
            self._clock.read()
            self._renderer.backend.submit(prepared.work)
            self._clock.handed_over()

    def _deliver(self, prepared: "_Prepared") -> Batch:
        step = prepared.step
        self._clock.before_input()
        rendered = None
        if prepared.work is not None:
            rendered = self._take(prepared)
            self._clock.decoded()
            if prepared.reads:
                self._reader.release(self._renderer.backend.still_reading)
        batch = Batch(
            images=self._renderer.images(rendered, step.offsets),
            labels=self._handover.numbers(step.labels),
            ids=torch.from_numpy(step.ids),
            crop=self._handover.numbers(step.crop),
        )
        self._clock.after_input()
        return batch

    def _take(self, prepared: "_Prepared") -> Any:
        """What the backend rendered; ValueError that names the sample it could not decode."""
        try:
            return self._renderer.backend.take()
        except (RuntimeError, ValueError) as error:  # DALI's names no sample
            assert prepared.encoded is not None
            decodes = self.dataset.encoding == "jpeg"  # else it has another cause
            if not decodes or (found := find_undecodable(prepared.encoded)) is None:
                raise
            place, reason = found
            number = prepared.unread[place]
            shard = int(self._index[prepared.step.rows[number]]["shard"])
            folder, name = self.config.shards, shard_stem(self.config.split, shard)
            raise ValueError(
                f"{folder / name}.tar, sample {prepared.step.ids[number]}: the bytes are those "
                f"written, yet no image ({reason}); make the shard anew: "
                f"tools/verify_shards.py {folder} --repair SOURCE"
            ) from error

    def _read_statistics(self) -> Statistics | None:
        config = self.config
        if not config.training or config.lighting == "off" or config.views == "full":
            return None
        return read_statistics(config.shards, self.dataset.fingerprint("train"))

    def _calibrate(self) -> None:
        """Has the fastest threads and decoder load found, with the images of the first step."""
        try:
            self._stage_from(0, 0)
            step = self._steps.step(0, 0)
            work = self._begin(step, self._renderer.unread(step.rows))
            if work is not None:
                self._reader.take()
                self._renderer.calibrate(work)
            self._stop()
        except BaseException:
            self.close()
            raise

    def _open_reader(self, index: Index) -> Reader:
        config = self.config
        shards = self.dataset.split(config.split).shards
        return Reader(
            self._stage or LocalShards([config.shards / shard.name for shard in shards]),
            index,
            header=RAW_HEADER if self.dataset.encoding == "raw" else b"",
            max_rows=config.max_rows,
            depth=self._depth,
            num_threads=NUM_READ_THREADS,
            allocate=np.empty if self.settings.device is None else pinned_empty,
        )

    def _open_stage(self) -> Stage | None:
        """What brings the shards to a local folder, where that is asked for."""
        config = self.config
        if config.stage_dir is None:
            return None
        return Stage(
            config.shards,
            self.dataset.split(config.split).shards,
            StageFolder(config.stage_dir, config.stage_bytes),
            window=config.window if config.training else 1,
            steps_ahead=self._depth,
        )

    def _stop(self) -> None:
        """Ends the iterator in use, if any, and forgets what it had begun."""
        if self._iterator is not None:
            self._iterator.close()  # type: ignore[attr-defined]  # it is a generator
            self._iterator = None
        self._ahead.clear()
        self._renderer.backend.clear()
        if self._stage is not None:
            self._stage.interrupt()
        self._reader.clear()


@dataclass(frozen=True)
class _Prepared:
    """A step being read. unread: the positions of its images that are, the others are kept.

    work: in the backend's own form. None where the step has no images.
    """

    step: Step
    unread: NDArray[np.int64]
    encoded: StepBytes | None
    work: Any | None

    @property
    def reads(self) -> bool:
        """Whether the reader has a request of this step."""
        return len(self.unread) > 0
