"""An iterator of torch batches with state: order, draws, reader and backend put together."""

import operator
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from pipeline.backends import RenderSettings
from pipeline.class_mix import check_window
from pipeline.handover import Handover
from pipeline.loader_config import MAX_EPOCHS, LoaderConfig
from pipeline.manifest import open_dataset
from pipeline.moments import Statistics, read_statistics
from pipeline.prefetcher import Batch, Prefetcher
from pipeline.renderer import Renderer
from pipeline.steps import Steps
from pipeline.waits import WaitClock, Waits

__all__ = ["Batch", "Loader", "LoaderConfig"]


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
        index = self.dataset.index(config.split)
        if config.training and config.batch_size > len(index):
            raise ValueError(
                f"batch size {config.batch_size} is over the {len(index)} images of "
                f"{config.split}: not one whole batch; use a smaller one"
            )
        if config.training:
            check_window(index, config.window, f"{config.shards}, {config.split}")
        handover = Handover(config.device)
        self._clock = WaitClock(handover.device)
        statistics = self._read_statistics()
        self._renderer = Renderer(
            config,
            self.dataset.encoding,
            handover,
            num_images=len(index),
            fingerprint=self._fingerprint,
        )
        shard_sizes = [shard.samples for shard in self.dataset.split(config.split).shards]
        self._steps = Steps(config, index, shard_sizes, statistics)
        self._prefetcher = Prefetcher(
            config, self.dataset, index, self._steps, self._renderer, handover, self._clock
        )
        self._process = os.getpid()
        self._epoch, self._step = 0, 0
        self._iterator: Iterator[Batch] | None = None
        self._is_closed = False
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
        if not 0 <= operator.index(epoch) < MAX_EPOCHS:
            raise ValueError(f"epoch must be within 0..2**63-1, not {epoch}")
        if epoch != self._epoch:
            self._stop()
            self._epoch, self._step = epoch, 0

    @property
    def settings(self) -> RenderSettings:
        """What the backend was opened with."""
        return self._renderer.settings

    @property
    def backend(self) -> str:
        """The name of the backend, which a calibration may have chosen."""
        return self._renderer.name

    @property
    def is_resident(self) -> bool:
        """Whether decoded images are kept, which "auto" decides by the room there is."""
        return self._renderer.is_resident

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
        if self._is_closed:
            raise ValueError("this loader was closed; open another with the same LoaderConfig")
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
        """Ends the threads and frees the buffers; closing twice is harmless."""
        self._is_closed = True
        self._stop()
        self._prefetcher.close()

    def _batches(self) -> Iterator[Batch]:
        for batch in self._prefetcher.batches(self._epoch, self._step):
            self._step += 1
            yield batch
        self._epoch, self._step = self._epoch + 1, 0

    def _read_statistics(self) -> Statistics | None:
        config = self.config
        if not config.training or config.lighting == "off" or config.views == "full":
            return None
        return read_statistics(config.shards, self.dataset.fingerprint("train"))

    def _calibrate(self) -> None:
        """Has the fastest threads and decoder load found; closes all where that fails."""
        try:
            self._prefetcher.calibrate()
        except BaseException:
            self.close()
            raise

    def _stop(self) -> None:
        """Ends the iterator in use, if any, and forgets what it had begun."""
        if self._iterator is not None:
            self._iterator.close()  # type: ignore[attr-defined]  # it is a generator
            self._iterator = None
        self._prefetcher.stop()
