"""Where shard tasks run: in this process, or in several on this machine."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any

import cv2

from pipeline.plan import PlannedShard, ShardTask
from pipeline.prepare import Stages, make_shard

POLL_SECONDS = 0.2
Report = Callable[[int], None]  # told how many originals have been done so far


def run_tasks(shards: list[PlannedShard], num_workers: int, report: Report) -> Stages:
    """Makes all shards with `num_workers` processes; returns the seconds spent per stage.

    report: called a few times a second in this thread with the number of originals done so far.
    The first error (OSError, or a worker that died) stops the rest; finished shards stay.
    """
    if num_workers == 1 or len(shards) < 2:
        return _run_here(shards, report)
    return _run_in_processes(shards, min(num_workers, len(shards)), report)


def _run_here(shards: list[PlannedShard], report: Report) -> Stages:
    cv2.setNumThreads(1)  # a worker is one thread, here as in a pool
    stages: Stages = Counter()
    done, reported = 0, 0.0

    def advance() -> None:
        nonlocal done, reported
        done += 1
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

    done: "Synchronized[int]"  # originals done by all workers
    stop: Event


def _start_worker(done: "Synchronized[int]", stop: Event) -> None:
    _Worker.done, _Worker.stop = done, stop
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when the parent was killed: it would write into the next start's shards."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _advance() -> None:
    with _Worker.done.get_lock():
        _Worker.done.value += 1
    if _Worker.stop.is_set():
        raise _Stopped


def _make_in_worker(task: ShardTask) -> Stages:
    return make_shard(task, _advance)


def _run_in_processes(shards: list[PlannedShard], num_workers: int, report: Report) -> Stages:
    # "spawn": no thread of this process is inherited half-alive, on every system alike.
    context = multiprocessing.get_context("spawn")
    done: Any = context.Value("q", 0)
    stop = context.Event()
    stages: Stages = Counter()
    waiting = (shard.task() for shard in shards)  # names go along only now
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (done, stop))
    try:
        running: set[Future[Stages]] = set()
        while True:
            free = 2 * num_workers - len(running)  # a short queue: plans can be long
            running |= {pool.submit(_make_in_worker, task) for task in islice(waiting, free)}
            if not running:
                return stages
            ended, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
            for future in ended:
                stages.update(future.result())
            report(done.value)
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process died (out of memory, or killed); finished shards are kept: start "
            "again to go on, with fewer --workers if memory is short"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
