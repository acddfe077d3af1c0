"""A contestant in a process of its own: what it leaves behind or breaks touches nobody else."""

import importlib
import multiprocessing
import signal
import sys
import time
import traceback
import warnings
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from textwrap import shorten
from types import FrameType, TracebackType
from typing import NoReturn, Self

from pipeline.engines import interrupts_blocked
from tools.measure.contestants import Entrant
from tools.measure.feed import Feed, FeedSettings
from tools.measure.memory import anonymous_bytes, evict, feed_files
from tools.measure.rounds import Pass, PassError

LONGEST_PASS_SECONDS = 900.0  # opening included; beyond it a contestant counts as hung
LONGEST_END_SECONDS = 10.0
LONGEST_REASON = 300  # characters


class Host:
    """Opens an entrant in a fresh process, which sleeps between passes.

    The process is spawned, not forked: nothing of this one (threads, open libraries) gets into it.
    Its own clock times a pass, from asking for the first batch to having the last. Ctrl-C reaches
    this process alone, which then ends it.
    """

    def __init__(
        self,
        entrant: Entrant,
        settings: FeedSettings,
        *,
        patience_seconds: float = LONGEST_PASS_SECONDS,
        end_seconds: float = LONGEST_END_SECONDS,
    ) -> None:
        self.name = entrant.label
        self._patience_seconds, self._end_seconds = patience_seconds, end_seconds
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, entrant, settings))
        resource_tracker.ensure_running()  # whose start would let interrupts through again
        with interrupts_blocked():
            self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:  # nobody waits for the pass any more
            self._process.terminate()
        self.close()

    def run_pass(self) -> Pass:
        """One pass; PassError where the contestant raised, died or took too long."""
        try:
            self._connection.send(True)
            if not self._connection.poll(self._patience_seconds):
                self._stop()  # or it would work on beside all that are measured after it
                raise PassError(f"no answer within {self._patience_seconds:,g} s")
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(self._end_seconds)
            raise PassError(f"its process died, exit code {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise PassError(answer)
        assert isinstance(answer, Pass)
        return answer

    def close(self) -> None:
        """Ends the process, by force if it does not end by itself."""
        self._connection.close()
        self._wait()
        self._process.close()

    def _stop(self) -> None:
        """Ends the process whatever it is doing."""
        self._process.terminate()
        self._wait()

    def _wait(self) -> None:
        self._process.join(self._end_seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, entrant: Entrant, settings: FeedSettings) -> None:
    """The contestant's process: one pass for every message, an end when the other side closes, or
    at once where it is terminated."""
    signal.signal(signal.SIGTERM, _end)
    feed: Feed | None = None
    try:
        while True:
            connection.recv()
            try:
                if feed is None:
                    feed = _open(entrant, settings)
                answer: Pass | str = timed_pass(feed, settings)
            except Exception as error:  # whatever a peer raises is the reason it is left out
                traceback.print_exc()  # whole, for people; the report has one line
                text = shorten(str(error), LONGEST_REASON, placeholder=" …")
                answer = f"{type(error).__name__}: {text}"
            connection.send(answer)
    except (EOFError, OSError, SystemExit):
        pass  # the measurement is over, and no frame of a pass holds the feed any more
    finally:
        if feed is not None:
            feed.close()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Leaves whatever goes on, but not without closing what was opened."""
    sys.exit()


def _open(entrant: Entrant, settings: FeedSettings) -> Feed:
    import torch

    # As many as a contestant has workers or rendering threads; torch's workers set 1 themselves.
    torch.set_num_threads(settings.num_threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a peer's own deprecations are not this tool's news
        feed: Feed = importlib.import_module(entrant.module).open_feed(entrant.name, settings)
    return feed


def timed_pass(feed: Feed, settings: FeedSettings) -> Pass:
    """Takes all batches of a pass; ValueError where one is not what was agreed."""
    import torch

    wanted = (settings.batch_size, 3, 224, 224)
    num_images, batch_seconds = 0, []
    if settings.cold:
        evict(feed_files(settings))
    started, caller = time.perf_counter(), time.thread_time()
    lap = started
    for images in feed.batches():
        if tuple(images.shape) != wanted or not images.is_floating_point():
            raise ValueError(f"a batch is {tuple(images.shape)} {images.dtype}, not {wanted}")
        num_images += len(images)
        last, lap = lap, time.perf_counter()
        batch_seconds.append(lap - last)
    if torch.cuda.is_available() and images.is_cuda:
        torch.cuda.synchronize()
    seconds, caller_seconds = time.perf_counter() - started, time.thread_time() - caller
    if not num_images:
        raise ValueError("a pass without a batch")
    return Pass(
        num_images=num_images,
        seconds=seconds,
        caller_seconds=caller_seconds,
        anonymous_bytes=anonymous_bytes(),
        batch_seconds=tuple(batch_seconds),
    )
