"""What the preparing commands share: engine, progress, settings from the command line."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from pipeline.engines import run_tasks
from pipeline.images import ImageFormat
from pipeline.manifest import Dataset
from pipeline.messages import explain
from pipeline.originals import Source
from pipeline.plan import PlannedShard, Settings
from pipeline.prepare import Engine, prepare
from pipeline.ray_engine import require_ray, run_on_ray
from pipeline.shard_maker import Stages
from pipeline.sources import open_source
from pipeline.tally import Tally
from tools.account import print_account
from tools.progress import Progress

ENGINES = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The command line of prepare_shards.py."""

    source: Path
    out: Path
    workers: int
    images_per_shard: int
    quality: int
    shuffle_seed: int
    encoding: str
    ignore_orientation: bool
    format: str
    val_fraction: float | None
    engine: str
    ray_address: str | None
    fresh: bool

    def __post_init__(self) -> None:
        if self.ray_address is not None and self.engine != "ray":
            raise click.UsageError("--ray-address needs --engine ray")

    def run(self) -> Dataset:
        """Prepares the shards and prints their account; ValueError and OSError as in prepare()."""
        start = time.monotonic()
        settings = Settings(
            image_format=ImageFormat(
                encoding=self.encoding,
                quality=self.quality,
                ignore_orientation=self.ignore_orientation,
            ),
            images_per_shard=self.images_per_shard,
            shuffle_seed=self.shuffle_seed,
            val_fraction=self.val_fraction,
        )
        source = self._open_source()
        engine = self._engine()
        try:
            outcome = prepare(source, self.out, settings, engine, fresh=self.fresh)
        except OSError as error:
            raise OSError(
                f"{explain(error)}; finished shards are kept: put that right (or give another "
                f"--out), then start the same command again"
            ) from error
        if self.fresh:
            num_removed = outcome.num_removed
            click.echo(f"--fresh: removed {num_removed} files of earlier shards from {self.out}")
        print_account(outcome, source, seconds=time.monotonic() - start)
        return outcome.dataset

    def _open_source(self) -> Source:
        try:
            return open_source(self.source, self.format, self.val_fraction)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{explain(error)}; put that right, then: tools/prepare_shards.py {self.source} "
                f"--out {self.out} (to try without data: tools/make_demo_images.py demo/images)"
            ) from error

    def _engine(self) -> Engine:
        if self.engine == "local":
            return local_engine("prepare", self.workers)
        require_ray(self.ray_address)  # before --fresh removes anything
        return self._run_on_ray

    def _run_on_ray(self, shards: list[PlannedShard]) -> Stages:
        with _progress("prepare", shards) as progress:
            return run_on_ray(shards, self.ray_address, _shown_by(progress))


def local_engine(name: str, workers: int) -> Engine:
    """Makes shards with processes of this machine, under a progress bar called `name`."""

    def run(shards: list[PlannedShard]) -> Stages:
        with _progress(name, shards) as progress:
            return run_tasks(shards, workers, _shown_by(progress))

    return run


def _shown_by(progress: Progress) -> Callable[[Tally], None]:
    """Shows a tally: images by the bar, MB/s and the quarantined beside it."""
    start = time.monotonic()

    def show(done: Tally) -> None:
        rate = done.source_bytes / 1e6 / max(time.monotonic() - start, 1e-9)
        progress.show(done.images, f"{rate:,.1f} MB/s, {done.quarantined:,} quarantined")

    return show


def _progress(name: str, shards: list[PlannedShard]) -> Progress:
    return Progress(name, total=sum(len(shard.ids) for shard in shards), unit="image")
