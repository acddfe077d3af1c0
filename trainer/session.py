"""One run from its options to its last epoch: build the parts, resume, train, save, report."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import torch

from pipeline.loader import Loader, LoaderConfig
from pipeline.moments import read_statistics
from pipeline.manifest import Dataset, open_dataset
from trainer.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_model,
    require_classes,
    save_checkpoint,
)
from trainer.config import (
    RunConfig,
    asked_preset,
    claim_folder,
    describe,
    find_device,
    find_precision,
    resolve_preset,
)
from trainer.evaluate import Errors, evaluate
from trainer.interrupt import stop_request
from trainer.loop import Totals, Trainer
from trainer.metrics import MetricsFile, Progress, Report
from trainer.optimizer import learning_rates, load_momentum, momentum_state
from trainer.start import build_model

LAST_NAME = "last.safetensors"
BEST_NAME = "best.safetensors"
METRICS_NAME = "metrics.jsonl"


class Session:
    """A run in its folder. ValueError for whatever the user has to put right first."""

    def __init__(self, config: RunConfig) -> None:
        dataset = open_dataset(config.shards)
        statistics = read_statistics(config.shards, dataset.fingerprint("train"))
        self.device = find_device(config.device)
        self.preset = resolve_preset(config, dataset.num_samples("train"))
        self.description = describe(config, self.preset, dataset)
        self.folder = config.folder
        self.metrics = MetricsFile(self.folder / METRICS_NAME)
        self.totals = Totals()
        self.epoch = 0  # finished epochs
        self.best_top1_error = 2.0  # worse than any
        self.model = build_model(self.preset, dataset.classes, config, statistics)
        self.model.place(self.device)
        claim_folder(self.folder, self.description)
        with ExitStack() as stack:
            loaders = {
                split: stack.enter_context(Loader(self._loader_config(config, split)))
                for split in ("train", "val")
            }
            self.train_loader, self.val_loader = loaders["train"], loaders["val"]
            self.trainer = Trainer(
                model=self.model,
                preset=self.preset,
                steps_per_epoch=len(self.train_loader),
                seed=config.seed,
                precision=find_precision(config.precision, self.preset, self.device),
            )
            self._say(config, dataset)
            self._resume(dataset.classes)
            self._loaders = stack.pop_all()

    def run(self) -> bool:
        """Trains to the last epoch. Returns False where a signal stopped it, to be resumed.

        ValueError where the loss is no longer finite; the last checkpoint stays.
        """
        if self.epoch >= self.num_epochs:
            print(f"{self.folder}: all {self.num_epochs} epochs are done; nothing to do")
        with stop_request() as stop:
            while self.epoch < self.num_epochs:
                try:
                    finished = self._run_epoch(stop)
                except FloatingPointError as error:
                    raise ValueError(self._diverged(error)) from error
                if not finished:
                    self._save(LAST_NAME)
                    print(f"stopped after step {self.trainer.step}; the same command resumes")
                    return False
        return True

    @property
    def num_epochs(self) -> int:
        """Of the whole run."""
        return self.preset.training.epochs

    def close(self) -> None:
        """Ends the loaders' threads."""
        self._loaders.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _loader_config(self, config: RunConfig, split: str) -> LoaderConfig:
        augmentation = self.preset.augmentation
        return LoaderConfig(
            shards=config.shards,
            split=split,
            batch_size=self.preset.training.batch_size,
            seed=config.seed,
            training=split == "train",
            window=config.window,
            lighting=augmentation.lighting,
            lighting_off_epoch=augmentation.lighting_off_epoch,
            images_per_crop=augmentation.images_per_crop,
            backend=config.backend,
            stage_dir=config.stage_dir,
            stage_bytes=config.stage_bytes,
            device=self.device.type,
        )

    def _run_epoch(self, stop: Callable[[], bool]) -> bool:
        """Trains what is left of the epoch, validates, saves, reports; False where stopped."""
        num_steps = len(self.train_loader)
        title = f"epoch {self.epoch + 1}/{self.num_epochs}"
        terminal = sys.stderr.isatty()
        self.train_loader.set_epoch(self.epoch)
        with Progress(
            title=title,
            num_steps=num_steps,
            first_step=self.trainer.step % num_steps,
            terminal=terminal,
        ) as progress:
            if not self.trainer.train_epoch(self.train_loader, self.totals, progress, stop):
                return False
        start = time.perf_counter()
        errors = evaluate(self.model, self.val_loader)
        if not math.isfinite(errors.loss):
            raise FloatingPointError(f"the validation loss after step {self.trainer.step} is NaN")
        self._finish_epoch(errors, time.perf_counter() - start)
        return True

    def _finish_epoch(self, errors: Errors, val_seconds: float) -> None:
        """Counts the epoch as done, and saves: best first, so last never names a lost one."""
        trainer, totals = self.trainer, self.totals
        report = Report(
            epoch=self.epoch + 1,
            step=trainer.step,
            train_loss=totals.loss,
            learning_rate=trainer.schedule.rate(trainer.step - 1),
            val_loss=errors.loss,
            top1_error=errors.top1_error,
            top5_error=errors.top5_error,
            num_val_images=errors.num_images,
            images_per_second=totals.images_per_second,
            train_seconds=totals.seconds,
            val_seconds=val_seconds,
            data_wait_seconds=totals.data_wait_seconds,
            read_wait_seconds=totals.read_wait_seconds,
            decode_wait_seconds=totals.decode_wait_seconds,
            handover_wait_seconds=totals.handover_wait_seconds,
            device_wait_seconds=totals.device_wait_seconds,
        )
        trainer.schedule.observe(errors.top1_error)
        self.epoch += 1
        self.totals = Totals()
        if errors.top1_error < self.best_top1_error:
            self.best_top1_error = errors.top1_error
            self._save(BEST_NAME)
        self.metrics.append(report)
        self._save(LAST_NAME)
        print(report.line(self.num_epochs), flush=True)

    def _diverged(self, error: FloatingPointError) -> str:
        last = self.folder / LAST_NAME
        kept = f"{last} is still good" if last.exists() else "no checkpoint was written yet"
        return (
            f"training diverged: {error}; {kept}. Try a smaller learning rate, such as --set "
            f"learning_rate={self.preset.training.learning_rate / 3:.2g}, with another --out"
        )

    def _save(self, name: str) -> None:
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            momentum=momentum_state(self.model, self.trainer.optimizer),
            config=self.description,
            progress={
                "epoch": self.epoch,
                "step": self.trainer.step,
                "learning_rates": learning_rates(self.trainer.optimizer),
                "best_top1_error": self.best_top1_error,
                "totals": vars(self.totals),
            },
            schedule=self.trainer.schedule.state_dict(),
            loader=self.train_loader.state_dict(),
            made_by={
                "fullfeed": version("fullfeed"),
                "torch": torch.__version__,
                "backend": self.train_loader.backend,
                "device": self.device.type,
                "shard_settings": dict(self.train_loader.dataset.settings),
            },
        )
        save_checkpoint(self.folder / name, checkpoint)

    def _resume(self, classes: tuple[str, ...]) -> None:
        """Takes up the last checkpoint where there is one, and drops what was told after it."""
        path = self.folder / LAST_NAME
        if not path.exists():
            self.metrics.drop_after(-1)
            return
        checkpoint = load_checkpoint(path)
        require_classes(checkpoint, classes, str(self.train_loader.dataset.folder))
        load_model(self.model, checkpoint)
        progress: dict[str, Any] = checkpoint.progress
        load_momentum(
            self.model, self.trainer.optimizer, checkpoint.momentum, progress["learning_rates"]
        )
        self.trainer.schedule.load_state_dict(checkpoint.schedule)
        self.trainer.step = progress["step"]
        self.epoch = progress["epoch"]
        self.best_top1_error = progress["best_top1_error"]
        self.totals = Totals(**progress["totals"])
        self.train_loader.load_state_dict(checkpoint.loader)
        self.metrics.drop_after(self.trainer.step)
        print(f"resuming {path}: {self.epoch} epochs done, {self.trainer.step} steps")

    def _say(self, config: RunConfig, dataset: Dataset) -> None:
        """Prints what the run is about to do."""
        num_train, num_val = dataset.num_samples("train"), dataset.num_samples("val")
        training, own = self.preset.training, asked_preset(config).training.batch_size
        lowered = f" (the preset's is {own:,})" if training.batch_size != own else ""
        loader = self.train_loader
        print(
            f"{self.preset.name}: {training.epochs} epochs of {num_train:,} images in "
            f"{self.model.num_classes} classes, {num_val:,} to validate\n"
            f"batch {training.batch_size:,}{lowered}, learning rate {training.learning_rate:g}, "
            f"{self.trainer.precision} on {self.device.type}\n"
            f"loader: {loader.backend} ({loader.backend_reason}); run folder: {self.folder}",
            flush=True,
        )
