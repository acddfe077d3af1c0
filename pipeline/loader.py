"""Order, draws, reader and backend as one iterator of torch batches, cut and resumed anywhere."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backends import Backend, RenderSettings, Work, candidates, open_backend
from pipeline.class_mix import check_window
from pipeline.cores import available_cores
from pipeline.draws import Draws, lighting_offsets
from pipeline.handover import Handover
from pipeline.images import RAW_HEADER
from pipeline.loader_config import LoaderConfig
from pipeline.manifest import open_dataset
from pipeline.moments import Statistics, read_statistics
from pipeline.open_shards import LocalShards
from pipeline.order import Rows, num_steps, order, rank_part
from pipeline.reader import Reader
from pipeline.stage_folder import StageFolder
from pipeline.staging import Stage

__all__ = ["Batch", "Loader", "LoaderConfig"]

NUM_READ_THREADS = 4
READ_AHEAD = 2  # steps read beyond those being rendered


@dataclass(frozen=True)
class Batch:
    """N images of a step, this rank's part of the global batch.

    images: (N, 3, 224, 224), channels-last memory, 0..255 units plus lighting, float16 on a GPU,
    float32 on the CPU; with views="full" uint8 (N, 3, 256, 256). labels: int64 (N,), with the
    images. ids: int64 (N,), sample ids, on the CPU. crop: int32 (N, 3) = x, y, flip, with the
    images.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    crop: torch.Tensor


class Loader:
    """Batches of a split, epoch after epoch, as a function of (seed, epoch, step) alone.

    for batch in loader: … delivers what is left of the current epoch, then moves to the next.
    state_dict() is the position of the next batch; `data_wait_seconds` is the time spent waiting
    for data inside the iterator so far. ValueError, with the next command, for shards, statistics
    or a state that do not fit.
    """

    def __init__(self, config: LoaderConfig) -> None:
        self.config = config
        self.dataset = open_dataset(config.shards)
        self.data_wait_seconds = 0.0
        self._index = self.dataset.index(config.split)
        if config.training:
            check_window(self._index, config.window, f"{config.shards}, {config.split}")
        self._handover = Handover(config.device)
        self._statistics = self._read_statistics()
        self._num_samples = len(self._index)
        if config.training and config.batch_size > self._num_samples:
            raise ValueError(
                f"batch size {config.batch_size} is over the {self._num_samples} images of "
                f"{config.split}: not one whole batch; use a smaller one"
            )
        self._stage = self._open_stage()
        self._renderer = self._open_renderer()
        self._reader = self._open_reader()
        self._epoch, self._step = 0, 0
        self._iterator: Iterator[Batch] | None = None

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        config = self.config
        return num_steps(self._num_samples, config.batch_size, training=config.training)

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
        if epoch != self._epoch:
            self._stop()
            self._epoch, self._step = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch and what it depends on; JSON-able."""
        return {**self._fixed_state, "epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`, which may come from other ranks, threads or backends.

        ValueError naming what differs: other shards, global batch, seed, order or augmentation.
        """
        for name, here in self._fixed_state.items():
            if state.get(name) != here:
                raise ValueError(
                    f"cannot resume: {name} is {state.get(name)} in the saved state and {here} "
                    "here; the batches would not be the same"
                )
        epoch, step = state["epoch"], state["step"]
        if not (epoch >= 0 and 0 <= step <= len(self)):
            raise ValueError(f"cannot resume: no step {step} of epoch {epoch}, of {len(self)}")
        self._stop()
        self._epoch, self._step = epoch, step

    def __iter__(self) -> Iterator[Batch]:
        """The remaining batches of this epoch."""
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
        self._renderer.close()
        self._reader.close()

    def _batches(self) -> Iterator[Batch]:
        coming = self._coming()  # parts of steps, in order
        reading: deque[_Part] = deque()
        rendering: deque[_Part] = deque()
        while True:
            started = time.perf_counter()
            while self._reader.has_room and (part := next(coming, None)) is not None:
                if len(part.rows):
                    self._reader.request(part.rows)
                reading.append(part)
            # Waits for the disk only when nothing is being rendered.
            while reading and len(rendering) < self.config.prefetch:
                if len(reading[0].rows):
                    if rendering and not self._reader.is_ready:
                        break
                    self._submit(reading[0])
                rendering.append(reading.popleft())
            if not rendering:
                break
            batch = self._deliver(rendering.popleft())
            self.data_wait_seconds += time.perf_counter() - started
            self._step += 1
            if self._stage is not None:
                self._stage.passed(self._step)
            yield batch
        self._epoch, self._step = self._epoch + 1, 0

    def _coming(self) -> Iterator["_Part"]:
        """This rank's parts of the steps from the current one to the end of the epoch."""
        config = self.config
        sizes = [shard.samples for shard in self.dataset.split(config.split).shards]
        rows: Rows = np.arange(self._num_samples)
        if config.training:
            rows = order(sizes, config.seed, self._epoch, config.window)
        if self._stage is not None:
            left = rows[self._step * config.batch_size : len(self) * config.batch_size]
            self._stage.begin(self._index["shard"][left], config.batch_size, self._step)
        for step in range(self._step, len(self)):
            first, last = rank_part(
                self._num_samples, config.batch_size, step, config.rank, config.world_size
            )
            start = step * config.batch_size
            drawn = config.draws(self._epoch, step)
            yield _Part(rows[first:last], drawn.part(first - start, last - start))

    def _submit(self, part: "_Part") -> None:
        offsets = None if self._finishes_on_gpu else self._offsets(part.draws)
        self._renderer.submit(Work(self._reader.take(), part.draws.crop, offsets))

    def _deliver(self, part: "_Part") -> Batch:
        chosen = self._index[part.rows]
        if len(part.rows):
            images = self._handover.pixels(self._renderer.take())
            self._reader.release()
        else:
            settings = self._render_settings()
            shape = (0, settings.side_px, settings.side_px, 3)
            images = self._handover.pixels(np.empty(shape, settings.dtype))
            if self.backend == "dali-gpu":
                images = images.to(self._handover.device)
        if self._finishes_on_gpu:
            if self.config.views == "full":
                images = self._handover.whole(images)
            else:
                images = self._handover.finish(images, self._offsets(part.draws))
        return Batch(
            images=images,
            labels=self._handover.numbers(chosen["label"].astype(np.int64)),
            ids=torch.from_numpy(chosen["id"].astype(np.int64)),
            crop=self._handover.numbers(part.draws.crop),
        )

    def _offsets(self, drawn: Draws) -> NDArray[np.float32] | None:
        """What lighting adds, float32 (N, 3); None where there is none."""
        if self._statistics is None:
            return None
        scale = self._statistics.eigenvalues
        if self.config.lighting == "std":
            scale = np.sqrt(scale)
        return lighting_offsets(drawn.alpha, self._statistics.eigenvectors, scale)

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

    def _render_settings(self) -> RenderSettings:
        config = self.config
        dtype: type[np.generic] = np.float32
        if config.views == "full" or self._finishes_on_gpu:
            dtype = np.uint8
        elif self.backend == "dali-gpu":
            dtype = np.float16
        return RenderSettings(
            encoding=self.dataset.encoding,
            max_rows=-(-config.batch_size // config.world_size),
            num_threads=config.threads or available_cores(),
            depth=config.prefetch,
            full=config.views == "full",
            dtype=dtype,
            device=self._handover.device.index if self.backend == "dali-gpu" else None,
        )

    def _open_renderer(self) -> Backend:
        """Opens the backend asked for, or the first that works here; sets its name and why."""
        reasons: list[str] = []
        for name, reason in candidates(self.config.backend, on_gpu=self._handover.on_gpu):
            self.backend, self.backend_reason = name, "; ".join([*reasons, reason])
            try:
                return open_backend(name, self._render_settings())
            except ValueError as error:
                if self.config.backend != "auto":
                    raise
                reasons.append(f"{name} does not work here ({error})")
        raise ValueError("; ".join(reasons))

    def _open_reader(self) -> Reader:
        config = self.config
        shards = self.dataset.split(config.split).shards
        return Reader(
            self._stage or LocalShards([config.shards / shard.name for shard in shards]),
            self._index,
            header=RAW_HEADER if self.dataset.encoding == "raw" else b"",
            max_rows=-(-config.batch_size // config.world_size),
            depth=self._read_depth,
            num_threads=NUM_READ_THREADS,
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
            steps_ahead=self._read_depth,
        )

    @property
    def _read_depth(self) -> int:
        """Steps whose bytes may be held at a time."""
        return self.config.prefetch + READ_AHEAD

    def _stop(self) -> None:
        """Ends the iterator in use, if any, and forgets what it had begun."""
        if self._iterator is not None:
            self._iterator.close()  # type: ignore[attr-defined]  # it is a generator
            self._iterator = None
        self._renderer.clear()
        if self._stage is not None:
            self._stage.interrupt()
        self._reader.clear()


@dataclass(frozen=True)
class _Part:
    """A rank's part of a step: its index rows and their draws."""

    rows: Rows
    draws: Draws
