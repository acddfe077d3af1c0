"""A measurement in every rank of a run, started here where nobody else did."""

import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from pipeline.messages import INTERRUPTED
from tools.measure.table import UNFINISHED
from trainer.config import RunConfig
from trainer.launch import (
    FAILED,
    PREEMPTED,
    begin_rank,
    end_rank,
    end_unless_first,
    is_rank,
    launch,
)
from trainer.rank import find_processes
from trainer.world import World, joined

Result = TypeVar("Result")


def in_every_rank(
    config: RunConfig, measure: Callable[[World], Result], publish: Callable[[Result], bool]
) -> None:
    """Measures in as many processes as a run of this configuration has; does not return in the
    process that starts them, nor where the exit code is not 0.

    measure: called on every rank. publish: called on the first with what it returned; what it
    returns is whether all is well, else the exit code is 1. ValueError and OSError, for the user
    to put right, and an interrupt are raised in one rank.
    """
    processes = find_processes(config)
    if processes > 1 and not is_rank():
        command = [sys.executable, *sys.argv]
        code = launch(command, processes=processes, max_restarts=0)
        sys.exit(INTERRUPTED if code == PREEMPTED else code)  # there is nothing to take up again
    begin_rank()
    try:
        with joined(config.device, config.timeout_seconds) as world:
            result = measure(world)
            told = [publish(result) if world.is_first else True]
            if world.size > 1:
                dist.broadcast_object_list(told, src=0)
    except (ValueError, OSError):
        end_unless_first(FAILED)
        raise
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it comes twice: the launcher passes it on
        end_unless_first(INTERRUPTED)
        raise KeyboardInterrupt(UNFINISHED) from None
    if not told[0]:
        end_rank(FAILED)
