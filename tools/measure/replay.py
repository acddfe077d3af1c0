"""The decoder of a loader at work without the loader: on bytes in memory, for nobody."""

import threading
from contextlib import ExitStack
from itertools import cycle

import numpy as np
import torch

from pipeline.handover import Handover
from pipeline.images import RAW_HEADER
from pipeline.loader_config import LoaderConfig
from pipeline.manifest import Dataset, open_dataset
from pipeline.moments import read_statistics
from pipeline.open_shards import LocalShards
from pipeline.reader import Reader, StepBytes
from pipeline.renderer import Renderer
from pipeline.steps import Step, Steps

Encoded = tuple[Step, StepBytes]


class Replay:
    """Renders the same encoded batches again and again, in a thread; what comes out is dropped.

    ask(): another batch is wanted; it is rendered as soon as those before it are. config: of a
    loader whose shards lie on this machine, and which keeps no decoded images, as it renders
    (`LoaderConfig.rendered_as`).
    num_batches: so many different ones, the first of the first epoch.
    """

    def __init__(self, config: LoaderConfig, num_batches: int) -> None:
        dataset = open_dataset(config.shards)
        self._batches = cycle(read_batches(config, dataset, num_batches))
        self._handover = Handover(config.device)
        self._renderer = Renderer(config, dataset.encoding, self._handover)
        self._change = threading.Condition()
        self._num_asked = 0
        self._is_busy = self._is_closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="fullfeed-replay", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Wants another batch rendered; raises what the decoder raised before."""
        with self._change:
            if self._error is not None:
                raise self._error
            self._num_asked += 1
            self._change.notify_all()

    def rest(self) -> None:
        """Forgets what was asked for; nothing is being rendered when this returns."""
        with self._change:
            self._num_asked = 0
            self._change.wait_for(lambda: not self._is_busy)

    def close(self) -> None:
        """Ends the thread and the decoder."""
        with self._change:
            self._num_asked, self._is_closed = 0, True
            self._change.notify_all()
        self._thread.join()
        self._renderer.backend.close()

    def _work(self) -> None:
        with ExitStack() as stack:
            if self._handover.on_gpu:  # a stream of its own, or every step would wait for it
                stream = torch.cuda.Stream(  # type: ignore[no-untyped-call]
                    self._handover.device
                )
                stack.enter_context(torch.cuda.device(self._handover.device))
                stack.enter_context(torch.cuda.stream(stream))
            while self._next():
                try:
                    self._render(*next(self._batches))
                except BaseException as error:  # raised again by ask()
                    self._error = error
                with self._change:
                    self._is_busy = False
                    self._change.notify_all()

    def _next(self) -> bool:
        """Waits until a batch is wanted; False where none will be."""
        with self._change:
            self._change.wait_for(lambda: self._num_asked or self._is_closed)
            if self._is_closed:
                return False
            self._num_asked -= 1
            self._is_busy = True
            return True

    def _render(self, step: Step, encoded: StepBytes) -> None:
        """As a loader has it done, to the tensor on the device."""
        renderer, backend = self._renderer, self._renderer.backend
        work = renderer.work(step, encoded, np.arange(len(step.rows)))
        backend.submit(backend.prepare(work))
        images = renderer.images(backend.take(), step.offsets)
        if images.is_cuda:
            torch.cuda.current_stream(images.device).synchronize()


def read_batches(config: LoaderConfig, dataset: Dataset, num_batches: int) -> list[Encoded]:
    """Encoded images of the first steps of the first epoch, this rank's part, held in memory."""
    index, shards = dataset.index(config.split), dataset.split(config.split).shards
    lit = config.training and config.lighting != "off"
    fingerprint = dataset.fingerprint(config.split)
    statistics = read_statistics(config.shards, fingerprint) if lit else None
    steps = Steps(config, index, [shard.samples for shard in shards], statistics)
    reader = Reader(
        LocalShards([config.shards / shard.name for shard in shards]),
        index,
        header=RAW_HEADER if dataset.encoding == "raw" else b"",
        max_rows=config.max_rows,
        depth=1,
        num_threads=1,
    )
    batches = []
    try:
        for number in range(min(num_batches, len(steps))):
            step = steps.step(0, number)
            reader.request(step.rows)
            read = reader.take()
            batches.append((step, StepBytes(read.data.copy(), read.sizes.copy())))
            reader.release()
    finally:
        reader.close()
        steps.close()
    return batches
