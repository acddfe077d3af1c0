"""Run folders written by hand, for what reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import RunConfig, resolve_preset

NUM_TRAIN = 39


def report(epoch: int, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {
        "epoch": epoch, "step": 10 * epoch, "train_loss": 3.0 / epoch, "learning_rate": 0.01,
        "val_loss": 2.0 / epoch, "top1_error": 0.8 / epoch, "top5_error": 0.4 / epoch,
        "num_val_images": 15, "images_per_second": 100.0, "train_seconds": 10.0,
        "val_seconds": 1.0, "data_wait_seconds": 1.0, "read_wait_seconds": 0.25,
        "decode_wait_seconds": 0.5, "handover_wait_seconds": 0.25, "device_wait_seconds": 0.0,
        "fed_ratio": None, "weights": None, **more,
    }  # fmt: skip


def write_run(
    folder: Path, lines: Sequence[dict[str, Any] | str], *, preset: str = "modern", epochs: int = 4
) -> Path:
    """Writes config.json and metrics.jsonl; a line that is text stands as it is."""
    folder.mkdir(parents=True)
    asked = RunConfig(shards=Path("shards"), preset=preset, epochs=epochs)
    config = {
        "preset": resolve_preset(asked, NUM_TRAIN).to_dict(),
        "width": 1.0,
        "classes": ["ant", "bee", "cat"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder
