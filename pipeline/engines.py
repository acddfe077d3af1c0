"""Where shard tasks run: in this process, or in several on this machine."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import SynchronizedArray
from multiprocessing.synchronize import Event
from typing import Any

import cv2

from pipeline.plan import PlannedShard, ShardTask
from pipeline.shard_maker import Stages, make_shard
from pipeline.tally import Tally

POLL_SECONDS = 0.2
Report = Callable[[Tally], None]  # told what has been done so far


def run_tasks(shards: list[PlannedShard], num_workers: int, report: Report) -> Stages:
    """Makes all shards with `num_workers` processes; returns the seconds spent per stage.

    report: called a few times a second in this thread with what has been done so far.
    The first error (OSError, or a worker that died) stops the rest; finished shards stay.
    """
    if num_workers == 1 or len(shards) < 2:
        return _run_here(shards, report)
    return _run_in_processes(shards, min(num_workers, len(shards)), report)


def _run_here(shards: list[PlannedShard], report: Report) -> Stages:
    cv2.setNumThreads(1)  # a worker is one thread, here as in a pool
    stages: Stages = Counter()
    done, reported = Tally(), 0.0

    def advance(added: Tally) -> None:
        nonlocal done, reported
        done += added
        if time.monotonic() - reported > POLL_SECONDS:
            reported = time.monotonic()
            report(done)

    for shard in shards:
        stages.update(make_shard(shard.task(), advance))
        report(done)
    return stages


class _Stopped(Exception):
    """In a worker: the parent wants no more of this."""


class _Worker:
    """What a worker process shares with its parent."""

    done: "SynchronizedArray[int]"  # images, quarantined, source bytes of all workers
    stop: Event


def _start_worker(done: "SynchronizedArray[int]", stop: Event) -> None:
    _Worker.done, _Worker.stop = done, stop
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when the parent was killed: it would write into the next start's shards."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _advance(added: Tally) -> None:
    with _Worker.done.get_lock():
        for i, value in enumerate((added.images, added.quarantined, added.source_bytes)):
            _Worker.done[i] += value
    if _Worker.stop.is_set():
        raise _Stopped


@contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """Ctrl-C interrupts nothing in the block: what is given tells how often it came.

    One that the block left alone interrupts at its end. In any other thread than the main one
    Python interrupts nothing anyway, and an ignored Ctrl-C stays ignored: the list stays empty.
    """
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield came
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes started in the block never see Ctrl-C: they inherit the mask.

    A worker could ignore it by itself only once Python and this module are loaded. In this process
    the mask alone holds nothing up: another thread (BLAS has some) takes the signal, and Python
    tells the main thread, perhaps before a worker was given what it is to do.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_in_worker(task: ShardTask) -> Stages:
    return make_shard(task, _advance)


def _run_in_processes(shards: list[PlannedShard], num_workers: int, report: Report) -> Stages:
    with interrupts_noted() as interrupts:
        # "spawn": no thread of this process is inherited half-alive, on every system alike.
        context = multiprocessing.get_context("spawn")
        shared = context.Array("q", 3), context.Event()
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(num_workers, context, _start_worker, shared)
        try:
            return _run_in_pool(pool, shards, 2 * num_workers, shared[0], report, interrupts)
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process died (out of memory, or killed); finished shards are kept: "
                "start again to go on, with fewer --workers if memory is short"
            ) from error
        finally:
            shared[1].set()
            _shut_down(pool, set(multiprocessing.active_children()) - others, interrupts)


def _run_in_pool(
    pool: ProcessPoolExecutor,
    shards: list[PlannedShard],
    max_queued: int,  # plans can be long
    done: Any,
    report: Report,
    interrupts: Sequence[int],
) -> Stages:
    stages: Stages = Counter()
    waiting = (shard.task() for shard in shards)  # names go along only now
    running: set[Future[Stages]] = set()
    while True:
        for task in islice(waiting, max_queued - len(running)):
            with interrupts_blocked():
                running.add(pool.submit(_make_in_worker, task))
        if not running:
            return stages
        ended, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
        if interrupts:
            raise KeyboardInterrupt
        for future in ended:
            stages.update(future.result())
        images, quarantined, source_bytes = done[:]
        report(Tally(images=images, quarantined=quarantined, source_bytes=source_bytes))


def _shut_down(
    pool: ProcessPoolExecutor, workers: set[BaseProcess], interrupts: Sequence[int]
) -> None:
    """Waits for the workers, which stop after the image in hand; another Ctrl-C kills them.

    What a killed one leaves unfinished does no harm, and one that a dead disk holds up would
    never end.
    """
    num_before = len(interrupts)
    closing = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
    closing.start()
    while closing.is_alive():
        closing.join(POLL_SECONDS)
        if len(interrupts) > num_before:
            for worker in workers:
                worker.kill()
