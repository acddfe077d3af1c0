"""Steps prepared, read and rendered ahead by threads, and delivered in their order as batches."""

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.ahead import Ahead
from pipeline.backends import Work
from pipeline.copies import pinned_empty
from pipeline.handover import Handover, lit
from pipeline.images import RAW_HEADER
from pipeline.loader_config import LoaderConfig
from pipeline.manifest import Dataset
from pipeline.open_shards import LocalShards
from pipeline.reader import Reader, StepBytes
from pipeline.reference import find_undecodable
from pipeline.renderer import Renderer
from pipeline.shards import Index, shard_stem
from pipeline.stage_folder import StageFolder
from pipeline.staging import Stage
from pipeline.steps import Step, Steps
from pipeline.waits import WaitClock

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
    lighting: float32 (N, 3), RGB, of a loader with lighting_apart: what is yet to be added to
    images, which are uint8 then; None where they have theirs, or there is none.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    crop: torch.Tensor
    lighting: torch.Tensor | None = None

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The same with each of its tensors changed."""
        return Batch(
            images=change(self.images),
            labels=change(self.labels),
            ids=change(self.ids),
            crop=change(self.crop),
            lighting=None if self.lighting is None else change(self.lighting),
        )

    def lit(self) -> "Batch":
        """The same with lighting added to images: the float32 that a loader gives otherwise."""
        if self.images.dtype != torch.uint8:
            return self
        return replace(self, images=lit(self.images, self.lighting), lighting=None)


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


class Prefetcher:
    """Delivers the steps of an epoch from any of them on, as many ahead as configured.

    index: of the split. steps, renderer, handover, clock: of the loader; the first two are closed
    with this. One iterator at a time, and stop() before another. One never closed does not keep
    its staged shards from being evicted.
    """

    def __init__(
        self,
        config: LoaderConfig,
        dataset: Dataset,
        index: Index,
        steps: Steps,
        renderer: Renderer,
        handover: Handover,
        clock: WaitClock,
    ) -> None:
        self._config, self._dataset, self._index = config, dataset, index
        self._steps, self._renderer = steps, renderer
        self._handover, self._clock = handover, clock
        self._depth = config.prefetch + READ_AHEAD  # steps begun at a time
        self._stage = self._open_stage()
        self._reader = self._open_reader()
        # In its thread, which gets no signals, all that takes a lock is called: see Latch.
        self._ahead: Ahead[Any] = Ahead("fullfeed-prepare")

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch's steps from `first` on."""
        coming = iter(range(first, len(self._steps)))
        num_asked = 0  # steps being prepared; then they are read, rendered and delivered
        reading: deque[_Prepared] = deque()
        rendering: deque[_Prepared] = deque()
        num_delivered = first
        while True:
            self._clock.start()
            while num_asked + len(reading) + len(rendering) < self._depth:
                if (number := next(coming, None)) is None:
                    break
                self._ahead.ask(self._prepare, epoch, number, number == first)
                num_asked += 1
            self._clock.handed_over()
            # Waits for a step's bytes only when nothing is being rendered.
            while num_asked and (self._ahead.is_ready or not (reading or rendering)):
                reading.append(self._ahead.take())
                num_asked -= 1
            while reading and len(rendering) < self._renderer.settings.depth:
                if rendering and reading[0].reads and not self._reader.is_ready:
                    break
                self._submit(reading[0])
                rendering.append(reading.popleft())
            if not rendering:
                return
            batch = self._deliver(rendering.popleft())
            self._clock.handed_over()
            num_delivered += 1
            if self._stage is not None:
                self._stage.passed(num_delivered)
            yield batch

    def calibrate(self) -> None:
        """Has the fastest threads and decoder load found, with the images of the first step."""
        self._ahead.ask(self._first_work)
        if (work := self._ahead.take()) is not None:
            self._reader.take()
            self._renderer.calibrate(work)
        self.stop()
        if self._renderer.settings.depth + READ_AHEAD != self._depth:
            self._ahead.clear(then=self._reader.close)
            self._depth = self._renderer.settings.depth + READ_AHEAD
            self._stage = self._open_stage()  # the reader closed its own
            self._reader = self._open_reader()

    def stop(self) -> None:
        """Forgets what was begun; nothing of it goes on when this returns."""
        self._ahead.clear(then=self._leave_stage)
        self._renderer.backend.clear()
        self._reader.clear()

    def close(self) -> None:
        """Ends the threads and frees the buffers; closing twice is harmless."""
        self.stop()
        self._ahead.clear(then=self._close_sources)
        self._ahead.close()
        self._renderer.backend.close()

    def _leave_stage(self) -> None:
        if self._stage is not None:
            self._stage.interrupt()

    def _close_sources(self) -> None:
        self._steps.close()
        self._reader.close()

    def _prepare(self, epoch: int, number: int, first: bool) -> _Prepared:
        """Begins to read a step; done ahead by a thread. first: of those to come."""
        if first:
            self._stage_from(epoch, number)
        step = self._steps.step(epoch, number)
        unread = self._renderer.unread(step.rows)
        work = self._begin(step, unread)
        prepared = None if work is None else self._renderer.backend.prepare(work)
        return _Prepared(step, unread, None if work is None else work.encoded, prepared)

    def _first_work(self) -> Work | None:
        """Begins to read the first step of all."""
        self._stage_from(0, 0)
        step = self._steps.step(0, 0)
        return self._begin(step, self._renderer.unread(step.rows))

    def _stage_from(self, epoch: int, number: int) -> None:
        """Has what the rest of an epoch reads brought to the stage, where there is one."""
        if self._stage is not None:
            left = self._steps.rows_left(epoch, number)
            self._stage.begin(self._index["shard"][left], self._config.batch_size, number)

    def _begin(self, step: Step, unread: NDArray[np.int64]) -> Work | None:
        """Begins to read a step's images at these positions; None where it has no images."""
        if not len(step.rows):
            return None
        encoded = self._reader.request(step.rows[unread]) if len(unread) else NOTHING
        return self._renderer.work(step, encoded, unread)

    def _submit(self, prepared: _Prepared) -> None:
        if prepared.work is not None:
            if prepared.reads:
                self._reader.take()
            self._clock.read()
            self._renderer.backend.submit(prepared.work)
            self._clock.handed_over()

    def _deliver(self, prepared: _Prepared) -> Batch:
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
            lighting=self._lighting(step),
        )
        self._clock.after_input()
        return batch

    def _lighting(self, step: Step) -> torch.Tensor | None:
        """Of a step, where it is handed on apart from the pixels."""
        if not self._config.lighting_apart or step.offsets is None:
            return None
        return self._handover.numbers(step.offsets)

    def _take(self, prepared: _Prepared) -> Any:
        """What the backend rendered; ValueError that names the sample it could not decode."""
        try:
            return self._renderer.backend.take()
        except (RuntimeError, ValueError) as error:  # DALI's names no sample
            assert prepared.encoded is not None
            decodes = self._dataset.encoding == "jpeg"  # else it has another cause
            if not decodes or (found := find_undecodable(prepared.encoded)) is None:
                raise
            place, reason = found
            number = prepared.unread[place]
            shard = int(self._index[prepared.step.rows[number]]["shard"])
            folder, name = self._config.shards, shard_stem(self._config.split, shard)
            raise ValueError(
                f"{folder / name}.tar, sample {prepared.step.ids[number]}: the bytes are those "
                f"written, yet no image ({reason}); make the shard anew: "
                f"tools/verify_shards.py {folder} --repair SOURCE"
            ) from error

    def _open_reader(self) -> Reader:
        config = self._config
        shards = self._dataset.split(config.split).shards
        return Reader(
            self._stage or LocalShards([config.shards / shard.name for shard in shards]),
            self._index,
            header=RAW_HEADER if self._dataset.encoding == "raw" else b"",
            max_rows=config.max_rows,
            depth=self._depth,
            num_threads=NUM_READ_THREADS,
            allocate=np.empty if self._renderer.settings.device is None else pinned_empty,
        )

    def _open_stage(self) -> Stage | None:
        """What brings the shards to a local folder, where that is asked for."""
        config = self._config
        if config.stage_dir is None:
            return None
        stage = Stage(
            config.shards,
            self._dataset.split(config.split).shards,
            StageFolder(config.stage_dir, config.stage_bytes, config.stage_patience_seconds),
            window=config.window if config.training else 1,
            steps_ahead=(2 if config.calibrate else 1) * config.prefetch + READ_AHEAD,
        )
        weakref.finalize(self, stage.leave)
        return stage
