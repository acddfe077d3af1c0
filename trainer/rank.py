"""What one rank of a run does, and how it ends; a run of one process is a rank alone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.config import RunConfig
from trainer.interrupt import stop_request
from trainer.launch import (
    FAILED,
    PREEMPTED,
    begin_rank,
    end_rank,
    end_unless_first,
    has_ended,
    is_rank,
    launch,
)
from trainer.session import Session
from trainer.world import explain_loss, joined


def run(config: RunConfig, command: list[str]) -> None:
    """Trains in as many processes as asked for; does not return where the exit code is not 0.

    command: that of this process, to start the ranks with. ValueError and OSError as Session.
    """
    processes = find_processes(config)
    if processes > 1 and not is_rank():
        sys.exit(launch(command, processes=processes, max_restarts=config.max_restarts))
    begin_rank()
    with _told_once():
        finished = _train(config)
    if not finished:
        end_rank(PREEMPTED)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Ends a rank that fails in the block as soon as it has said why.

    What Python takes down at its end otherwise includes the threads of an exchange that was given
    up; now and then that ends in "terminate called".
    """
    try:
        yield
    except SystemExit as end:
        if is_rank() and isinstance(end.code, int) and end.code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise


def find_processes(config: RunConfig) -> int:
    """Those asked for; else one per GPU that this process sees; on CPUs, one."""
    if config.processes is not None:
        return config.processes
    if config.overfit or config.device == "cpu":
        return 1
    return max(1, torch.cuda.device_count())


def _train(config: RunConfig) -> bool:
    """Whether training ended by itself. SystemExit, after saying why, where a rank was lost."""
    step = 0
    with (
        joined(config.device, config.timeout_seconds) as world,
        stop_request(quiet=not world.is_first, to_the_end=is_rank()) as asked,
    ):
        try:
            with Session(config, world) as session:
                try:
                    return session.run(asked)
                finally:
                    step = session.trainer.step
        except RuntimeError as error:
            told = explain_loss(world, error)
            if told is None:
                raise
            if not has_ended():
                print(f"rank {world.rank}, step {step}: {told}", file=sys.stderr, flush=True)
            sys.exit(FAILED)


@contextmanager
def _told_once() -> Iterator[None]:
    """Lets an error that the user has to put right through in one rank; the others just end."""
    try:
        yield
    except (ValueError, OSError):
        end_unless_first(FAILED)
        raise
