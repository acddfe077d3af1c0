"""Runs a function in several gloo ranks on this machine, and gives back what each returned.

The processes stay for the next call, which saves it the import of torch; a call that fails takes
them with it, so that no other meets what it left.
"""

import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

PATIENCE_SECONDS = 600.0


class _Process(NamedTuple):
    """One that waits for calls."""

    process: Any  # a Process of the spawn context
    calls: "Connection[Any, Any]"


_idle: list[_Process] = []


def run_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """function(*arguments) in `num_ranks` processes that share a process group; their results.

    RuntimeError with the traceback of the first rank that failed. function: of a module's level;
    what it changes of its process it puts back.
    """
    while len(_idle) < num_ranks:
        _idle.append(_start())
    ranks = _idle[:num_ranks]
    with TemporaryDirectory(prefix="ranks-") as folder:
        for rank, (_, calls) in enumerate(ranks):
            calls.send((rank, num_ranks, folder, function, arguments))
        failure = _first_failure([calls for _, calls in ranks])
        if failure is not None:
            stop_ranks()
            raise RuntimeError(failure)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(num_ranks)]


def stop_ranks() -> None:
    """Ends the processes that wait for calls."""
    while _idle:
        process, calls = _idle.pop()
        process.kill()
        process.join()
        calls.close()


def _first_failure(ranks: "list[Connection[Any, Any]]") -> str | None:
    """Waits until each rank is done, or one has failed; its traceback."""
    waiting = list(ranks)
    while waiting:
        answered = wait(waiting, PATIENCE_SECONDS)
        if not answered:
            return f"no answer for {PATIENCE_SECONDS:g} s"
        for calls in answered:
            assert isinstance(calls, Connection)
            try:
                failure = calls.recv()
            except EOFError:
                failure = f"rank {ranks.index(calls)} ended"
            if failure is not None:
                return str(failure)
            waiting.remove(calls)
    return None


def _start() -> _Process:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_answer, args=(there,), daemon=True)
    process.start()
    there.close()
    return _Process(process, here)


def _answer(calls: "Connection[Any, Any]") -> None:
    """Makes the calls that come, each in a process group of its own, until one fails."""
    failure = None
    while failure is None:
        rank, num_ranks, folder, function, arguments = calls.recv()
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=num_ranks,
                timeout=timedelta(seconds=PATIENCE_SECONDS / 2),
            )
            torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
            dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            failure = traceback.format_exc()
        calls.send(failure)
