"""Checkpoints of a run, written by a thread while training goes on; the first rank writes for all.

A checkpoint is copied to the memory of the host, which stops training for a moment; everything
slow (checksum, disk) happens beside the steps that follow.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.messages import explain
from trainer.checkpoint import Checkpoint, in_host_memory, save_checkpoint
from trainer.collectives import Group

LAST_NAME = "last.safetensors"
BEST_NAME = "best.safetensors"


def epoch_name(epoch: int) -> str:
    """The checkpoint that is kept of a finished epoch, counted from 1."""
    return f"epoch-{epoch:04d}.safetensors"


class CheckpointWriter:
    """Writes into a run folder; every rank calls `begin` and `settle`, in the same order.

    One writing is in flight at most. What could not be written is told at once, and what was
    there stays. ranks: all of them; device: through which they exchange; every_minutes: of the
    clock of `is_due`, None for never.
    """

    def __init__(
        self, folder: Path, ranks: Group, device: torch.device, every_minutes: float | None = None
    ) -> None:
        self._folder, self._ranks, self._device = folder, ranks, device
        self._every_seconds = None if every_minutes is None else 60 * every_minutes
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._names: tuple[str, ...] = ()  # in flight, on every rank
        self._lost: Future[list[str]] | None = None  # those not written, on the first rank
        self._begun_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the minutes have passed since the last beginning, and nothing is in flight.

        On the first rank alone: by its clock.
        """
        if self._every_seconds is None or self._ranks.rank:
            return False
        busy = self._lost is not None and not self._lost.done()
        return not busy and time.monotonic() - self._begun_at >= self._every_seconds

    def begin(
        self,
        names: Sequence[str],
        checkpoint: Checkpoint,
        otherwise: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins to write the checkpoint under each of the names, in their order.

        Returns once it is copied: its tensors may change. otherwise: what the progress of the
        later ones says instead where an earlier one could not be written. What was begun before
        is settled.
        """
        assert not self._names, "not settled"
        self._names, self._begun_at = tuple(names), time.monotonic()
        if self._ranks.rank == 0:
            copied = in_host_memory(checkpoint)
            self._lost = self._thread.submit(self._write, self._names, copied, otherwise or {})

    def settle(self) -> tuple[str, ...]:
        """Waits for what is in flight; the names that could not be written, on every rank."""
        names, self._names = self._names, ()
        if not names:
            return ()
        lost: list[str] = []
        if self._lost is not None:
            lost, self._lost = self._lost.result(), None
        told = torch.tensor([name in lost for name in names], device=self._device)
        everywhere = self._ranks.broadcast(told.int()).tolist()
        return tuple(name for name, is_lost in zip(names, everywhere, strict=True) if is_lost)

    def close(self) -> None:
        """Waits for what is in flight, of this rank alone, and ends the thread."""
        self._thread.shutdown()

    def _write(
        self, names: Sequence[str], checkpoint: Checkpoint, otherwise: Mapping[str, Any]
    ) -> list[str]:
        """The names that could not be written."""
        lost = []
        for name in names:
            try:
                save_checkpoint(self._folder / name, checkpoint)
            except OSError as error:
                lost.append(name)
                checkpoint = replace(checkpoint, progress={**checkpoint.progress, **otherwise})
                path = self._folder / name
                told = f"warning: {path} not written: {explain(error)}; training goes on"
                print(told, file=sys.stderr, flush=True)
        return lost
