"""One run from its options to its last epoch: build the parts, resume, train, save, report."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from trainer.checkpoint import Checkpoint
from trainer.checkpoint_writer import BEST_NAME, LAST_NAME, CheckpointWriter, epoch_name
from trainer.config import RunConfig, find_device
from trainer.description import describe
from trainer.evaluate import Errors, evaluate
from trainer.guard import LossNotFinite
from trainer.interrupt import stop_request
from trainer.metrics import Progress, Report, Totals
from trainer.origin import origin_digest
from trainer.parts import plan_parts
from trainer.retrace import Retrace
from trainer.run_folder import RunFolder
from trainer.same_options import options_of, require_same
from trainer.state import capture, restore
from trainer.step_trace import StepTrace, trace_name
from trainer.weight_report import weight_table
from trainer.world import Agreement, Wish, World


class Session:
    """A run in its folder. ValueError for whatever the user has to put right first."""

    def __init__(self, config: RunConfig, world: World | None = None) -> None:
        """world: of the rank that this is; by default a world of one."""
        self.config = config
        self.world = world or World(device=find_device(config.device))
        self.device = self.world.device
        require_same(options_of(config), self.world.ranks, self.device)
        self.parts = parts = plan_parts(config, self.world)
        self.preset, self.layout = parts.preset, parts.layout
        digest = origin_digest(config, is_first=self.world.is_first)
        self.description = describe(config, self.preset, parts.dataset, digest)
        require_same(self.description, self.layout.ranks, self.device)
        self.folder = config.folder
        self.records = RunFolder(
            self.folder, self.layout.ranks, self.device, tensorboard=config.tensorboard
        )
        self.totals = Totals()
        self.epoch = 0  # finished epochs
        self.best_top1_error = self._best_before = 2.0  # worse than any
        self.ceiling: float | None = None  # images per second of the step alone
        self.last_report: Report | None = None  # of this process
        self.model = parts.plain_model()
        with ExitStack() as stack:
            stack.callback(self.records.close)
            self.records.claim(self.description, config.shards, config.init_from)
            checkpoint = self.records.last_checkpoint(self.description)
            self.model.forms = parts.forms(self.model, checkpoint)
            self.writer = CheckpointWriter(
                self.folder, self.layout.ranks, self.device, config.save_every_minutes
            )
            self.trace = StepTrace(
                self.folder / trace_name(self.world.rank), config.profile, self.device
            )
            stack.callback(self.trace.close)
            stack.callback(self.writer.close)
            self.train_feed, self.val_feed = parts.open_feeds(stack)
            self.trainer = parts.trainer(self.model, len(self.train_feed))
            told = self.train_feed.description, self.model.forms
            self.records.say(*parts.introduction(*told, resumed=checkpoint is not None))
            self._resume(checkpoint)
            self.retrace = Retrace(self.trainer, self.train_feed)
            self.retrace.keep()
            self.trainer.when_good = self.retrace.keep
            self._loaders = stack.pop_all()

    def run(self, asked: Callable[[], bool] | None = None) -> bool:
        """Trains to the last epoch, or to the last step where steps are limited.

        asked: whether a signal came, of a caller that listens already; without it, this listens.
        Returns False where a signal stopped it, to be resumed. ValueError where the loss is no
        longer finite; the last checkpoint stays. OSError where that of the end is not written.
        """
        if asked is None:
            with stop_request(quiet=not self.world.is_first) as asked:
                return self.run(asked)
        if self.epoch >= self.num_epochs:
            done = f"all {self.num_epochs} epochs are done; nothing to do"
            self.records.say(f"{self.folder}: {done}")
        elif self.config.fed_ratio:
            self.ceiling = self.parts.measure_ceiling(self.train_feed, self.model.forms)
            self.records.say(f"the step alone, on one batch: {self.ceiling:,.0f} images/s")
        self._train(asked)
        is_lost = LAST_NAME in self._settle()
        if is_lost and self.epoch == self.num_epochs:
            raise OSError(
                f"the run has ended, but its last checkpoint is not in {self.folder}; the same "
                f"command trains again from the one before it"
            )
        if self.epoch == self.num_epochs:
            return True
        command = "the same command" + (" without --limit-steps" if self._at_limit else "")
        kept = ", which was not saved" if is_lost else ""
        goes_on = "goes on from the checkpoint before it, if any" if is_lost else "resumes"
        self.records.say(f"stopped after step {self.trainer.step}{kept}; {command} {goes_on}")
        return self._at_limit

    def _train(self, asked: Callable[[], bool]) -> None:
        """Epoch by epoch, until all are done, the steps are limited or a stop was agreed on."""
        agreed = Agreement(self.world)
        while self.epoch < self.num_epochs and not self._at_limit:
            try:
                # Also where an epoch is one step. What is to be saved here was saved just now.
                stopped = self._granted(agreed, asked()) == Wish.STOP
                if stopped or not self._run_epoch(lambda: self._wish(agreed, asked())):
                    self._save(LAST_NAME)
                    break
            except FloatingPointError as error:
                self._settle()
                raise ValueError(self._diverged(error)) from error
        agreed.settle()

    @property
    def _at_limit(self) -> bool:
        limit = self.config.limit_steps
        return limit is not None and self.trainer.step >= limit

    @property
    def num_epochs(self) -> int:
        """Of the whole run."""
        return self.preset.training.epochs

    def close(self) -> None:
        """Ends the threads of the loaders, of TensorBoard and, when it has written, of saving."""
        self._loaders.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _wish(self, agreed: Agreement, stop_asked: bool) -> Wish:
        """What is to be done between two steps, on all ranks."""
        self.trace.step()
        granted = self._granted(agreed, stop_asked)
        return Wish.STOP if self._at_limit else granted

    def _granted(self, agreed: Agreement, stop_asked: bool) -> Wish:
        """What the ranks agree on; all of them call it."""
        due = Wish.SAVE if self.writer.is_due else Wish.NOTHING
        return agreed(Wish.STOP if stop_asked else due)

    def _run_epoch(self, wish: Callable[[], Wish]) -> bool:
        """Trains what is left of the epoch, validates, saves, reports; False where stopped."""
        num_steps = len(self.train_feed)
        title = f"epoch {self.epoch + 1}/{self.num_epochs}"
        terminal = sys.stderr.isatty() and self.world.is_first
        self.train_feed.set_epoch(self.epoch)
        every = self.config.weight_report
        self.trainer.watch_weights = every is not None and (self.epoch + 1) % every == 0
        with Progress(
            title=title,
            num_steps=num_steps,
            first_step=self.trainer.step % num_steps,
            terminal=terminal,
            num_later=self.num_epochs - self.epoch - 1,
            last=self.last_report,
        ) as progress:
            feed = self.records.shown(self.train_feed, self.trainer.step)
            if not self.trainer.train_epoch(
                feed, self.totals, progress, wish, lambda: self._save(LAST_NAME)
            ):
                return False
        start = time.perf_counter()
        tested = self.trainer.tested_model()
        self.records.draw_kernels(tested, self.trainer.step)
        errors = evaluate(tested, self.val_feed, ranks=self.layout.ranks)
        if not math.isfinite(errors.loss):
            raise FloatingPointError(
                f"the validation loss after step {self.trainer.step} is {errors.loss}"
            )
        self._finish_epoch(errors, time.perf_counter() - start)
        return True

    def _finish_epoch(self, errors: Errors, val_seconds: float) -> None:
        """Counts the epoch as done, tells of it and saves."""
        trainer, totals = self.trainer, self.totals
        report = Report(
            epoch=self.epoch + 1,
            step=trainer.step,
            learning_rate=trainer.schedule.rate(trainer.step - 1),
            val_loss=errors.loss,
            top1_error=errors.top1_error,
            top5_error=errors.top5_error,
            num_val_images=errors.num_images,
            val_seconds=val_seconds,
            weights=trainer.weight_changes if trainer.watch_weights else None,
            fed_ratio=totals.images_per_second / self.ceiling if self.ceiling else None,
            **totals.reported(),
        )
        trainer.schedule.observe(errors.top1_error)
        self.epoch += 1
        self.last_report = report
        self.totals = Totals()
        self.records.append(report)
        self._save_epoch(errors)
        self.records.say(report.line(self.num_epochs))
        if report.weights:
            self.records.say(weight_table(report.weights, report.step))

    def _diverged(self, error: FloatingPointError) -> str:
        last = self.folder / LAST_NAME
        began = self.retrace.blame(error) if isinstance(error, LossNotFinite) else ""
        kept = f"{last} is still good" if last.exists() else "no checkpoint was written yet"
        third = self.parts.asked.training.learning_rate / 3  # at the preset's batch
        return (
            f"training diverged: {error}{began}; {kept}. Try a smaller learning rate, such as "
            f"--set learning_rate={third:.2g}, with another --out"
        )

    def _save_epoch(self, errors: Errors) -> None:
        """Begins to save a finished epoch: the best first, so that no later one names a lost one.

        Should it be lost, they say that the best is what was the best before.
        """
        self._settle()
        every, names = self.config.save_every_epochs, [LAST_NAME]
        if every is not None and self.epoch % every == 0:
            names.append(epoch_name(self.epoch))
        self._best_before = self.best_top1_error
        if errors.top1_error < self.best_top1_error:
            names.insert(0, BEST_NAME)
            self.best_top1_error = errors.top1_error
        self._save(*names)

    def _save(self, *names: str) -> None:
        """Begins to save the run as it is now; every rank calls it."""
        self._settle()
        progress = {
            "epoch": self.epoch,
            "best_top1_error": self.best_top1_error,
            "totals": vars(self.totals),
        }
        checkpoint = capture(self.trainer, self.train_feed, self.description, progress)
        self.writer.begin(names, checkpoint, {"best_top1_error": self._best_before})

    def _settle(self) -> tuple[str, ...]:
        """Waits for the checkpoints that are being written; those that were lost."""
        lost = self.writer.settle()
        if BEST_NAME in lost:
            self.best_top1_error = self._best_before
        return lost

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        """Takes a checkpoint up where there is one, and drops what was told after it."""
        if checkpoint is None:
            self.records.resume(-1)
            return
        restore(checkpoint, self.trainer, self.train_feed)
        progress: dict[str, Any] = checkpoint.progress
        self.epoch = progress["epoch"]
        self.best_top1_error = progress["best_top1_error"]
        self.totals = Totals(**progress["totals"])
        self.records.resume(self.trainer.step)
        done = f"{self.epoch} epochs done, {self.trainer.step} steps"
        self.records.say(f"resuming {self.folder / LAST_NAME}: {done}")
