"""Order, draws, reader and backend as one iterator of torch batches, cut and resumed anywhere."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from pipeline.ahead import Ahead
from pipeline.backends import Backend, RenderSettings, Work, open_backend, open_first
from pipeline.calibrate import alternatives, fastest
from pipeline.class_mix import check_window
from pipeline.copies import pinned_empty
from pipeline.cores import cores_of_rank
from pipeline.driver import Driver
from pipeline.handover import Handover
from pipeline.images import RAW_HEADER
from pipeline.loader_config import LoaderConfig
from pipeline.manifest import open_dataset
from pipeline.moments import Statistics, read_statistics
from pipeline.open_shards import LocalShards
from pipeline.reader import Reader, StepBytes
from pipeline.reference import find_undecodable
from pipeline.shards import Index, shard_stem
from pipeline.stage_folder import StageFolder
from pipeline.staging import Stage
from pipeline.steps import Step, Steps
from pipeline.waits import WaitClock, Waits

__all__ = ["Batch", "Loader", "LoaderConfig"]

NUM_READ_THREADS = 4
READ_AHEAD = 2  # steps read beyond those being rendered


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
        self._index = index = self.dataset.index(config.split)
        if config.training:
            check_window(index, config.window, f"{config.shards}, {config.split}")
        if config.training and config.batch_size > len(index):
            raise ValueError(
                f"batch size {config.batch_size} is over the {len(index)} images of "
                f"{config.split}: not one whole batch; use a smaller one"
            )
        self._handover = Handover(config.device)
        self._clock = WaitClock(self._handover.device)
        statistics = self._read_statistics()
        opened = open_first(
            config.backend,
            self._settings_of,
            on_gpu=self._handover.on_gpu,
            encoding=self.dataset.encoding,
        )
        self.backend, self.backend_reason = opened.name, opened.reason
        self._settings = opened.settings
        self._renderer = self._driven(opened.backend)
        self._depth = config.prefetch + READ_AHEAD  # steps begun at a time
        self._stage = self._open_stage()
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
        return self._settings

    @property
    def hw_decoder_load(self) -> float | None:
        """The share of images a GPU's JPEG engine decodes, 0..1; None with another decoder."""
        decodes = self.backend == "dali-gpu" and self.dataset.encoding == "jpeg"
        return self._settings.hw_decoder_load if decodes else None

    @property
    def description(self) -> str:
        """The backend, why it was chosen, its threads and its decoder's load, for a person."""
        threads = self._settings.num_threads
        threads_told = "1 thread" if threads == 1 else f"{threads} threads"
        parts = [f"{self.backend} ({self.backend_reason})", threads_told]
        if self.hw_decoder_load is not None:
            parts.append(f"hw_decoder_load {self.hw_decoder_load}")
        return ", ".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch and what it depends on; JSON-able.

        hw_decoder_load only tells how the pixels came about; exact loaders alone compare it.
        """
        told = {"hw_decoder_load": self.hw_decoder_load}
        return {**self._fixed_state, "epoch": self._epoch, "step": self._step, **told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`, which may come from other ranks, threads or backends.

        ValueError naming what differs: other shards, global batch, seed, order or augmentation; or
        where this loader is to be exact and the one of the state was not.
        """
        for name, here in self._fixed_state.items():
            if state.get(name) != here:
                raise ValueError(
                    f"cannot resume: {name} is {state.get(name)} in the saved state and {here} "
                    "here; the batches would not be the same"
                )
        if self.config.exact and state.get("hw_decoder_load"):
            raise ValueError(
                f"cannot resume exactly: hw_decoder_load is {state['hw_decoder_load']} in the "
                "saved state, so its pixels cannot be had again; resume without --exact"
            )
        epoch, step = state.get("epoch"), state.get("step")
        whole = isinstance(epoch, int) and isinstance(step, int)
        if not (whole and epoch >= 0 and 0 <= step <= len(self)):
            raise ValueError(f"cannot resume: no step {step} of epoch {epoch}, of {len(self)}")
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
        self._renderer.close()
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
                if rendering and not self._is_read(reading[0]):
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
        work = self._begin(step)
        if work is None:
            return _Prepared(step, None, None)
        return _Prepared(step, work.encoded, self._renderer.prepare(work))

    def _stage_from(self, epoch: int, number: int) -> None:
        """Has what the rest of an epoch reads brought to the stage, where there is one."""
        if self._stage is not None:
            left = self._steps.rows_left(epoch, number)
            self._stage.begin(self._index["shard"][left], self.config.batch_size, number)

    def _begin(self, step: Step) -> Work | None:
        """Begins to read a step; None where it has no images."""
        if not len(step.rows):
            return None
        encoded = self._reader.request(step.rows)
        return Work(encoded, step.crop, None if self._finishes_on_gpu else step.offsets)

    def _is_read(self, prepared: "_Prepared") -> bool:
        return prepared.work is None or self._reader.is_ready

    def _submit(self, prepared: "_Prepared") -> None:
        if prepared.work is not None:
            self._reader.take()
            self._clock.read()
            self._renderer.submit(prepared.work)
            self._clock.handed_over()

    def _deliver(self, prepared: "_Prepared") -> Batch:
        step = prepared.step
        self._clock.before_input()
        if prepared.work is not None:
            rendered = self._take(prepared)
            self._clock.decoded()
            images = self._handover.pixels(rendered)
            self._reader.release(self._renderer.still_reading)
        else:
            images = self._no_images()
        if self._finishes_on_gpu:
            if self.config.views == "full":
                images = self._handover.whole(images)
            else:
                images = self._handover.finish(images, step.offsets)
        batch = Batch(
            images=images,
            labels=self._handover.numbers(step.labels),
            ids=torch.from_numpy(step.ids),
            crop=self._handover.numbers(step.crop),
        )
        self._clock.after_input()
        return batch

    def _take(self, prepared: "_Prepared") -> Any:
        """What the backend rendered; ValueError that names the sample it could not decode."""
        try:
            return self._renderer.take()
        except (RuntimeError, ValueError) as error:  # DALI's names no sample
            assert prepared.encoded is not None
            if self.dataset.encoding == "raw":  # nothing is decoded: it has another cause
                raise
            if (found := find_undecodable(prepared.encoded)) is None:
                raise
            number, reason = found
            shard = int(self._index[prepared.step.rows[number]]["shard"])
            folder, name = self.config.shards, shard_stem(self.config.split, shard)
            raise ValueError(
                f"{folder / name}.tar, sample {prepared.step.ids[number]}: the bytes are those "
                f"written, yet no image ({reason}); make the shard anew: "
                f"tools/verify_shards.py {folder} --repair SOURCE"
            ) from error

    def _no_images(self) -> torch.Tensor:
        """What a backend gives of no image at all, which DALI refuses to render."""
        shape = (0, self._settings.side_px, self._settings.side_px, 3)
        images = self._handover.pixels(np.empty(shape, self._settings.dtype))
        return images.to(self._handover.device) if self.backend == "dali-gpu" else images

    @property
    def _finishes_on_gpu(self) -> bool:
        """Whether a CPU backend feeds a GPU: it sends uint8, lighting is added there."""
        return self._handover.on_gpu and self.backend != "dali-gpu"

    @property
    def _fixed_state(self) -> dict[str, Any]:
        return self.config.fixed_state(self.dataset.fingerprint(self.config.split))

    def _read_statistics(self) -> Statistics | None:
        config = self.config
        if not config.training or config.lighting == "off" or config.views == "full":
            return None
        return read_statistics(config.shards, self.dataset.fingerprint("train"))

    def _settings_of(self, backend: str) -> RenderSettings:
        """What to open a backend of this name with."""
        config = self.config
        on_gpu = backend == "dali-gpu"
        dtype: type[np.generic] = np.float16 if on_gpu else np.float32
        if config.views == "full" or (self._handover.on_gpu and not on_gpu):
            dtype = np.uint8
        return RenderSettings(
            encoding=self.dataset.encoding,
            max_rows=-(-config.batch_size // config.world_size),
            num_threads=config.threads or cores_of_rank(config.local_world_size),
            depth=config.prefetch,
            full=config.views == "full",
            dtype=dtype,
            device=self._handover.device.index if on_gpu else None,
            hw_decoder_load=0.0 if config.exact else config.hw_decoder_load,
            allocate=pinned_empty if self._handover.on_gpu and not on_gpu else np.empty,
        )

    def _driven(self, backend: Backend) -> Backend:
        """The backend; one that works in host memory, driven by a thread of its own."""
        return Driver(backend) if self._settings.device is None else backend

    def _calibrate(self) -> None:
        """Opens the renderer again with the fastest threads and decoder load."""
        try:
            self._stage_from(0, 0)
            work = self._begin(self._steps.step(0, 0))
            if work is not None:
                self._reader.take()
                self._renderer.close()
                choices = alternatives(self._settings, exact=self.config.exact)
                open_one = partial(open_backend, self.backend)
                self._settings = fastest(choices, open_one, work, self._handover.settle)
                self._renderer = self._driven(open_one(self._settings))
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
            max_rows=-(-config.batch_size // config.world_size),
            depth=self._depth,
            num_threads=NUM_READ_THREADS,
            allocate=np.empty if self._settings.device is None else pinned_empty,
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
        self._renderer.clear()
        if self._stage is not None:
            self._stage.interrupt()
        self._reader.clear()


@dataclass(frozen=True)
class _Prepared:
    """A step being read. work: in the backend's own form. None where the step has no images."""

    step: Step
    encoded: StepBytes | None
    work: Any | None
