"""What a run folder tells, however it ended: settings, reports, the checkpoint, where it trained.

Whatever is missing or damaged becomes a remark, a sentence for the reader, and the rest is used.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.locations import location
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.checkpoint_writer import BEST_NAME, LAST_NAME
from trainer.description import CONFIG_NAME, differences
from trainer.run_folder import SHARDS_NAME
from trainer.sinks import JSON_NAME

Reports = list[dict[str, Any]]
MAX_COMPARED = 8  # runs whose colours can be told apart
MAX_DIFFERENCES = 4  # named in one remark
# What reading damaged JSON raises, one's own checks of it included
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
SETTING_TYPES: Mapping[str, tuple[type, ...]] = {
    "classes": (list,),
    "fingerprints": (dict,),
    "width": (int, float),
    "preset": (dict,),
    "preset.name": (str,),
    "preset.augmentation": (dict,),
    "preset.augmentation.lighting": (str,),
    "preset.augmentation.lighting_off_epoch": (int,),
    "preset.training": (dict,),
    "preset.training.epochs": (int,),
    "preset.training.schedule": (str,),
    "preset.training.layer_rates": (list,),
}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its folder tells it; what could not be read is empty or None, and has a remark."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    reports: Reports  # one per finished epoch, in the order they were written
    checkpoint: Checkpoint | None
    checkpoint_name: str
    shards: Path | None
    remarks: list[str] = field(default_factory=list)

    def setting(self, name: str) -> Any:
        """The setting of a dotted name (preset.training.schedule); None where there is none.

        Those of the run's own configuration, or where that is lost, of its checkpoint.
        """
        return setting_of(
            self.config or (self.checkpoint.config if self.checkpoint else {}), name
        )


def setting_of(config: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name; None where there is none."""
    value: Any = config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def read_runs(folders: Sequence[Path], shards: Path | None = None) -> list[RunRecord]:
    """The runs in these folders, under names that differ; shards: in place of what they noted.

    ValueError for a folder that is not there or holds nothing of a run, and for too many of them.
    """
    if len(folders) > MAX_COMPARED:
        raise ValueError(f"{len(folders)} runs; at most {MAX_COMPARED} can be told apart")
    names = [folder.resolve().name for folder in folders]
    unique = [
        name if names.count(name) == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]
    if len(set(unique)) < len(unique):
        raise ValueError("the same run is named twice")
    return [read_run(*each, shards=shards) for each in zip(folders, unique, strict=True)]


def read_run(folder: Path, name: str, *, shards: Path | None = None) -> RunRecord:
    """One run; see `read_runs`."""
    files = (CONFIG_NAME, JSON_NAME, LAST_NAME, BEST_NAME)
    if not any((folder / file).is_file() for file in files):
        raise ValueError(
            f"{folder} is no run folder: it holds none of {', '.join(files)}; name the --out of "
            f"trainer/run.py"
        )
    remarks: list[str] = []
    config = _read_config(folder / CONFIG_NAME, remarks)
    reports = _read_reports(folder / JSON_NAME, remarks)
    checkpoint, checkpoint_name = _read_checkpoint(folder, remarks)
    if checkpoint and config and (different := differences(checkpoint.config, config)):
        shown = "; ".join(different[:MAX_DIFFERENCES])
        more = f"; and {len(different) - MAX_DIFFERENCES} more" if different[4:] else ""
        shown = shown.replace("asked for", f"in {CONFIG_NAME}")
        remarks.append(
            f"{checkpoint_name} is of another run than {CONFIG_NAME} and the curves: "
            f"{shown}{more}."
        )
    return RunRecord(
        name=name,
        folder=folder,
        config=config,
        reports=reports,
        checkpoint=checkpoint,
        checkpoint_name=checkpoint_name,
        shards=shards or _read_shards(folder / SHARDS_NAME, remarks),
        remarks=remarks,
    )


def number(report: Mapping[str, Any], key: str) -> float | None:
    """A report's number, which may be NaN; None where it has none of that name."""
    value = report.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def series(reports: Reports, key: str) -> list[tuple[float, float]]:
    """(epoch, value) of every report that has the number `key`, NaN and infinities included."""
    found = ((report["epoch"], number(report, key)) for report in reports)
    return [(float(epoch), value) for epoch, value in found if value is not None]


def last_finite(reports: Reports, key: str) -> float | None:
    """The newest value of `key` that is a number."""
    values = [value for _, value in series(reports, key) if math.isfinite(value)]
    return values[-1] if values else None


def _read_config(path: Path, remarks: list[str]) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
        _require_settings(config)
        return dict(config)
    except (OSError, *DAMAGED):
        remarks.append(
            f"{path.name} is missing or damaged: settings are the checkpoint's, if any."
        )
        return {}


def _require_settings(config: Any) -> None:
    """ValueError or TypeError unless what a page says of settings has its type where it is."""
    if not isinstance(config, dict):
        raise ValueError("not an object")
    for name, types in SETTING_TYPES.items():
        value = setting_of(config, name)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            raise ValueError(f"{name} is {value!r}")
    for epoch, layer, factor in setting_of(config, "preset.training.layer_rates") or []:
        float(epoch), str(layer), float(factor)


def _read_reports(path: Path, remarks: list[str]) -> Reports:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        remarks.append(f"There is no {path.name}: no epoch was finished, so there are no curves.")
        return []
    reports: Reports = []
    damaged = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            report = json.loads(line)
            _require_epoch(report)
        except DAMAGED:
            damaged.append(i)
            continue
        reports.append(report)
    if len(damaged) == 1:
        remarks.append(f"Line {damaged[0]} of {path.name} is cut off or damaged; it is left out.")
    elif damaged:
        remarks.append(
            f"{len(damaged):,} lines of {path.name} are cut off or damaged, line {damaged[0]} the "
            f"first of them; they are left out."
        )
    if not reports and not remarks:
        remarks.append(f"{path.name} is empty: no epoch was finished, so there are no curves.")
    return reports


def _require_epoch(report: Any) -> None:
    """ValueError, TypeError or KeyError unless it is a report of a numbered epoch."""
    if number(report, "epoch") is None or not math.isfinite(report["epoch"]):
        raise ValueError("its epoch is no number")


def _read_checkpoint(folder: Path, remarks: list[str]) -> tuple[Checkpoint | None, str]:
    """The best one, else the last, with its file name."""
    for name in (BEST_NAME, LAST_NAME):
        if not (folder / name).exists():
            continue
        try:
            return load_checkpoint(folder / name), name
        except (ValueError, KeyError, TypeError) as error:
            remarks.append(f"A checkpoint cannot be used: {error}.")
    remarks.append("Without a checkpoint there are no kernels, predictions or mistakes to show.")
    return None, ""


def _read_shards(path: Path, remarks: list[str]) -> Path | None:
    try:
        return location(json.loads(path.read_bytes())["folder"])
    except (OSError, *DAMAGED):
        remarks.append(f"{path.name} does not tell where the shards lie; give --shards.")
        return None
