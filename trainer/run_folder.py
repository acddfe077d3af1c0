"""The folder of a run, in which the first rank writes metrics, and prints, for all of them."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.atomic import is_local, remove_temporaries, write_whole
from pipeline.loader import Batch
from pipeline.messages import explain
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.checkpoint_writer import LAST_NAME
from trainer.collectives import Group
from trainer.description import claim_folder, differences
from trainer.folder_lock import FolderLock
from trainer.loop import Feed
from trainer.metrics import Report
from trainer.model import AlexNet
from trainer.origin import NOTE_NAME, note_origin
from trainer.pictures import (
    KERNEL_SCALE,
    KERNELS_PER_ROW,
    SAMPLES_PER_ROW,
    SeenFeed,
    kernel_pictures,
    sample_pictures,
    tiled,
)
from trainer.sinks import Sinks


SHARDS_NAME = "shards.json"  # where the run's shards lay when it was last started


class RunFolder:
    """Configuration and metrics of a run; every rank calls everything, in the same order.

    A disk that is full stops no training: what could not be written is told, and what was there
    stays. ranks: all of them; device: through which they exchange.
    """

    def __init__(
        self, path: Path, ranks: Group, device: torch.device, *, tensorboard: bool = False
    ) -> None:
        self.path = path
        self._ranks, self._device = ranks, device
        self._lock = FolderLock(path)
        self._draws = tensorboard and ranks.rank == 0
        self._sinks = Sinks(path, tensorboard=tensorboard)

    @property
    def _is_first(self) -> bool:
        return self._ranks.rank == 0

    def claim(
        self, description: dict[str, Any], shards: Path, init_from: Path | None = None
    ) -> None:
        """Makes the folder this run's own, or ValueError: see claim_folder and FolderLock.

        Removes what killed runs were writing, and notes where the shards lie, and the checkpoint
        that it begins with, if any. Every rank waits until the first one has the folder.
        """
        if self._is_first:
            claim_folder(self.path, description)
            self._lock.take()
            remove_temporaries(self.path)
        # The run that held the lock may have saved on its way out: nobody reads before. Its value
        # is asked for, as on a GPU a broadcast alone holds nobody up.
        self._ranks.broadcast(torch.ones(1, device=self._device)).item()
        text = json.dumps({"folder": str(shards.absolute() if is_local(shards) else shards)})
        path = self.path / SHARDS_NAME
        self._write(str(path), partial(write_whole, path, text.encode() + b"\n"))
        if init_from is not None:
            note = partial(note_origin, self.path, init_from)
            self._write(str(self.path / NOTE_NAME), note)

    def say(self, *lines: str) -> None:
        """Prints."""
        if self._is_first:
            print(*lines, sep="\n", flush=True)

    def last_checkpoint(self, description: dict[str, Any]) -> Checkpoint | None:
        """What the run of that description goes on from; None where it begins.

        ValueError where it is damaged, of another run, or not the same for all ranks.
        """
        path = self.path / LAST_NAME
        checkpoint = load_checkpoint(path) if path.exists() else None
        if checkpoint and (different := differences(checkpoint.config, description)):
            raise ValueError(
                f"{path} is of another run: {'; '.join(different)}. Put its own back, or delete it"
            )
        step = checkpoint.progress["step"] if checkpoint else -1
        steps = self._ranks.all_gather(torch.tensor([step], device=self._device), 0).tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"{self.path} holds different checkpoints for different processes, of steps "
                f"{steps}; give an --out on a disk that all machines share"
            )
        return checkpoint

    def resume(self, step: int) -> None:
        """Drops metrics past the checkpoint of that step; -1 where there is none."""
        if self._is_first:
            self._sinks.resume(step)

    def append(self, report: Report) -> None:
        """Adds a report to the metrics."""
        write = partial(self._sinks.append, report.to_dict())
        self._write(f"metrics of epoch {report.epoch}", write)

    def shown(self, feed: Feed, step: int) -> Feed:
        """An epoch's feed; what it delivers first is drawn where TensorBoard was asked for."""
        if not self._draws:
            return feed

        def see(batch: Batch) -> None:
            sheet = tiled(sample_pictures(batch), SAMPLES_PER_ROW)
            self._sinks.draw("augmented samples", sheet, step)

        return SeenFeed(feed, see)

    def draw_kernels(self, model: AlexNet, step: int) -> None:
        """Draws the first layer of a whole network where TensorBoard was asked for."""
        if self._draws:
            kernels = kernel_pictures(model.conv1.weight)
            self._sinks.draw("kernels", tiled(kernels, KERNELS_PER_ROW, KERNEL_SCALE), step)

    def close(self) -> None:
        """Ends TensorBoard's thread, and lets another run have the folder."""
        self._sinks.close()
        self._lock.close()

    def _write(self, what: str, write: Callable[[], None]) -> None:
        if self._is_first:
            try:
                write()
            except OSError as error:
                told = f"warning: {what} not written: {explain(error)}; training goes on"
                print(told, file=sys.stderr, flush=True)
