"""A loader in a storm of interrupts, as test_prefetcher.py runs it: storm.py SHARDS BACKEND MS.

Prints how many interrupts there were, and how many batches after them were the right ones.
"""

import faulthandler
import random
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch

import pipeline
from pipeline.loader import Batch, Loader, LoaderConfig

NUM_ROUNDS = 30
HANG_SECONDS = 60
PIPELINE = str(Path(pipeline.__file__).parent)


class Storm:
    """SIGALRM in place of SIGINT: a timer sends it, and it interrupts what the loader does."""

    def __init__(self, pause_seconds: float) -> None:
        self._pause_seconds = pause_seconds
        self.num_interrupts = 0
        signal.signal(signal.SIGALRM, self._interrupt)

    def begin(self, first_seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, first_seconds, self._pause_seconds)

    def end(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        while frame is not None:  # the program around the loader is let be
            if frame.f_code.co_filename.startswith(PIPELINE):
                self.num_interrupts += 1
                raise KeyboardInterrupt
            frame = frame.f_back


def main(shards: Path, backend: str, pause_seconds: float) -> None:
    config = LoaderConfig(shards=shards, batch_size=8, backend=backend, threads=2)
    rng = random.Random(0)
    storm = Storm(pause_seconds)
    with Loader(config) as loader, Loader(config) as calm:
        for _ in range(NUM_ROUNDS):
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            storm.begin(rng.uniform(0, 4 * pause_seconds) + 1e-6)
            for _ in range(rng.randrange(1, 12)):
                with suppress(KeyboardInterrupt):
                    list(loader)
            storm.end()
            calm.load_state_dict(loader.state_dict())
            require_equal(first(loader), first(calm))
    faulthandler.cancel_dump_traceback_later()
    print(storm.num_interrupts, NUM_ROUNDS)


def first(loader: Loader) -> Batch:
    """The next batch, which may be of the next epoch."""
    while True:
        for batch in loader:
            return batch


def require_equal(found: Batch, expected: Batch) -> None:
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.images, expected.images)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]) / 1000)
