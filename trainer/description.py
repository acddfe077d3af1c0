"""What makes a run what it is, in its folder as config.json, and what two of them differ in."""

import json
from pathlib import Path
from typing import Any

from pipeline.atomic import write_whole
from pipeline.manifest import Dataset
from trainer.config import RunConfig
from trainer.preset import Preset

CONFIG_NAME = "config.json"


def describe(
    config: RunConfig, preset: Preset, dataset: Dataset, origin_sha256: str | None = None
) -> dict[str, Any]:
    """All that makes a run what it is, JSON-able: two runs of the same description are the same.

    Not the device, the backend, the place of the shards or where they are staged, nor on how many
    processes and how they share the work: a run may move.
    The micro-batch only where batch norm sees it. origin_sha256: of the checkpoint that it began
    with, if any.
    """
    description = {
        "preset": preset.to_dict(),
        "width": config.width,
        "precision": config.precision,
        "micro_batch": config.micro_batch if preset.network.norm == "batch" else None,
        "ema": config.ema,
        "overfit": config.overfit,
        "seed": config.seed,
        "window": config.window,
        # None where they are what they always were: run folders of before stay valid
        "order": None if config.order == "global" else config.order,
        "resident_format": None if config.resident_format == "rgb" else config.resident_format,
        "classes": list(dataset.classes),
        "fingerprints": {split: dataset.fingerprint(split) for split in ("train", "val")},
    }
    if origin_sha256 is not None:
        replaced = config.replace_head
        description["init_from"] = {"sha256": origin_sha256, "replace_head": replaced}
    return description


def claim_folder(folder: Path, description: dict[str, Any]) -> None:
    """Makes the run folder, or takes it up again where it holds this very configuration.

    ValueError where it holds another one, naming what differs, or where it cannot be written.
    """
    path = folder / CONFIG_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, (json.dumps(description, indent=2) + "\n").encode())
            return
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged; delete {folder} or choose another --out") from error
    if different := differences(found, description):
        raise ValueError(
            f"{folder} holds a run of another configuration: {'; '.join(different)}. Choose "
            f"another --out, ask for the same, or delete the folder"
        )


def differences(found: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    """Each value in which two descriptions differ, as "name is …, asked for …"."""
    lines: list[str] = []
    for key in sorted(found.keys() | asked.keys()):
        old, new = found.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif isinstance(old, list) and isinstance(new, list) and old != new:
            lines.append(f"{prefix}{key} are {_short(old)}, asked for {_short(new)}")
        elif old != new:
            lines.append(f"{prefix}{key} is {old!r}, asked for {new!r}")
    return lines


def _short(values: list[Any]) -> str:
    more = ", …" if len(values) > 3 else ""
    return f"{len(values)} ({', '.join(str(value) for value in values[:3])}{more})"
