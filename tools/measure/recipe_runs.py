"""A training as it is measured, and this project's own."""

import io
import json
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.config import RunConfig, asked_preset
from trainer.session import Session


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training: what it cost and what is left wrong; errors are fractions, 0..1.

    One whose loss is no number any more has ended too: it is wrong about every image, and has no
    epochs to be timed but the one in which that was found.
    """

    epoch_seconds: tuple[float, ...]  # of training, validation aside
    num_images: int  # trained on
    top1_error: float  # of the centre crop, after the last epoch
    top5_error: float
    diverged: bool = False

    @property
    def seconds(self) -> float:
        """Of training, all epochs."""
        return sum(self.epoch_seconds)


class Recipe(Protocol):
    """What is compared."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    def run(self, num_epochs: int, seed: int) -> Run:
        """Trains a fresh network and evaluates it."""


@dataclass(frozen=True, kw_only=True)
class OurRecipe:
    """A preset of this project, as `trainer/run.py` trains it.

    variant: its name, and after it what is set of it, as in "paper lighting=std". ValueError for
    a preset or a field that there is not.
    """

    shards: Path
    width: float
    device: str
    variant: str = "modern"

    def __post_init__(self) -> None:
        asked_preset(self._config(num_epochs=1, seed=0, out=Path()))

    @property
    def name(self) -> str:
        """See Recipe."""
        return ", ".join(self.variant.split())

    def _config(self, num_epochs: int, seed: int, out: Path) -> RunConfig:
        preset, *settings = self.variant.split() or [""]
        return RunConfig(
            shards=self.shards, preset=preset, settings=tuple(settings), epochs=num_epochs,
            width=self.width, device=self.device, seed=seed, out=out,
        )  # fmt: skip

    def run(self, num_epochs: int, seed: int) -> Run:
        """Trains in a run folder that is thrown away; its lines per epoch are not shown."""
        with tempfile.TemporaryDirectory(prefix="fullfeed-recipe-") as folder:
            config = self._config(num_epochs, seed, Path(folder))
            with redirect_stdout(io.StringIO()), Session(config) as session:
                started = time.perf_counter()
                try:
                    if not session.run():
                        raise KeyboardInterrupt
                except ValueError as error:
                    if not isinstance(error.__cause__, FloatingPointError):
                        raise
                    return _diverged(time.perf_counter() - started)
            lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line) for line in lines]
        return Run(
            epoch_seconds=tuple(epoch["train_seconds"] for epoch in epochs),
            num_images=round(
                sum(epoch["train_seconds"] * epoch["images_per_second"] for epoch in epochs)
            ),
            top1_error=epochs[-1]["top1_error"],
            top5_error=epochs[-1]["top5_error"],
        )


def _diverged(seconds: float) -> Run:
    return Run(
        epoch_seconds=(seconds,), num_images=0, top1_error=1.0, top5_error=1.0, diverged=True
    )
