"""The evaluation of checkpoints on a split: each alone, all together, and class by class."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.loader import Loader, LoaderConfig
from pipeline.manifest import Dataset
from trainer.checkpoint import (
    Checkpoint,
    load_checkpoint,
    require_classes,
    require_finite,
    restore_model,
)
from trainer.config import find_device
from trainer.evaluate import Tally, evaluate_together
from trainer.precision import set_up_device

VIEWS = {"1": "centre crop", "10": "ten views"}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to evaluate on what: checkpoint files, a split of a shard folder, 1 or 10 views.

    staging: the loader's options for shards on an object store.
    """

    checkpoints: tuple[Path, ...]
    shards: Path
    split: str = "val"
    views: int = 1
    backend: str = "auto"
    device: str = "auto"
    batch_size: int = 128
    staging: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """The errors, JSON-able: over all images, of each checkpoint, of each class.

        ValueError where a checkpoint cannot be read, has weights that are no numbers or knows
        other classes than the shards, or where there is no such split.
        """
        place = find_device(self.device)
        set_up_device("fp32", place)
        config = LoaderConfig(
            shards=self.shards,
            split=self.split,
            batch_size=self.batch_size,
            training=False,
            lighting="off",
            views="full" if self.views == 10 else "crop",
            backend=self.backend,
            device=place.type,
            **self.staging,
        )
        with Loader(config) as loader:
            checkpoints, models = [], []
            for path in self.checkpoints:
                checkpoint = load_checkpoint(path)
                require_classes(checkpoint, loader.dataset.classes, str(self.shards), str(path))
                require_finite(checkpoint, str(path))
                models.append(restore_model(checkpoint, place))
                checkpoints.append(_about(path, checkpoint))
            tallies = evaluate_together(models, loader, self.views)
            return self._report(loader.dataset, checkpoints, tallies)

    def _report(
        self, dataset: Dataset, checkpoints: Sequence[Mapping[str, Any]], tallies: Sequence[Tally]
    ) -> dict[str, Any]:
        *alone, together = tallies
        return {
            "shards": str(self.shards),
            "split": self.split,
            "fingerprint": dataset.fingerprint(self.split),
            "views": self.views,
            **dataclasses.asdict(together.errors()),
            "checkpoints": [
                {**about, **dataclasses.asdict(tally.errors())}
                for about, tally in zip(checkpoints, alone, strict=True)
            ],
            "classes": [
                {"class": dataset.classes[found.label], **dataclasses.asdict(found)}
                for found in together.by_class()
            ],
        }


def _about(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Which network that is."""
    config, progress = checkpoint.config, checkpoint.progress
    return {
        "checkpoint": str(path),
        "preset": config["preset"]["name"],
        "width": config["width"],
        "seed": config["seed"],
        "epoch": progress["epoch"],
        "step": progress["step"],
        "trained_on": config["fingerprints"]["train"],
    }


def error_lines(report: Mapping[str, Any]) -> list[str]:
    """A line for each checkpoint, and one for all together where there are several."""
    what = f"{report['split']}, {VIEWS[str(report['views'])]}"
    if len(report["checkpoints"]) == 1:
        return [f"{what}: {_errors(report)}"]
    lines = [f"{what}, {one['checkpoint']}: {_errors(one)}" for one in report["checkpoints"]]
    return [*lines, f"{what}, all {len(lines)} together: {_errors(report)}"]


def class_table(report: Mapping[str, Any]) -> str:
    """Images and errors of each class, the worst first."""
    worst_first = sorted(
        report["classes"], key=lambda found: (-found["top1_error"], -found["top5_error"])
    )
    width = max(len("class"), *(len(found["class"]) for found in worst_first))
    lines = [f"{'class':<{width}}  images  top-1 error  top-5 error"]
    for found in worst_first:
        lines.append(
            f"{found['class']:<{width}}  {found['num_images']:>6,}  {found['top1_error']:>11.2%}  "
            f"{found['top5_error']:>11.2%}"
        )
    return "\n".join(lines)


def _errors(found: Mapping[str, Any]) -> str:
    return (
        f"top-1 error {found['top1_error']:.2%}, top-5 error {found['top5_error']:.2%}, "
        f"loss {found['loss']:.4f} over {found['num_images']:,} images"
    )
