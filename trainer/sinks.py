"""Where the reports of a run go: metrics.jsonl, metrics.csv beside it, TensorBoard where asked.

The JSON lines are the record; the table is made from them anew with every report, so it has their
keys and loses what they lose when a run is taken up again.
"""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.atomic import write_whole

JSON_NAME = "metrics.jsonl"
CSV_NAME = "metrics.csv"
TENSORBOARD_NAME = "tensorboard"
Value = float | str | bool | None


class Sinks:
    """The sinks of a run folder; `resume` comes before the first report."""

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self._lines = MetricsFile(folder / JSON_NAME)
        self._table = folder / CSV_NAME
        self._events = TensorBoard(folder / TENSORBOARD_NAME) if tensorboard else None

    def resume(self, step: int) -> None:
        """Drops what was told after the checkpoint of that step; -1 where there is none."""
        self._lines.drop_after(step)
        if self._table.exists():
            write_whole(self._table, table_of(self._lines.read()).encode())
        if self._events:
            self._events.open(step)

    def append(self, report: Mapping[str, Any]) -> None:
        """Tells a report, JSON-able, with the key `step`; it is on the disk on return."""
        self._lines.append(report)
        write_whole(self._table, table_of(self._lines.read()).encode())
        if self._events:
            self._events.append(report)

    def draw(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Shows a picture, uint8 (height, width, 3), in TensorBoard; nothing where not asked."""
        if self._events:
            self._events.draw(name, pixels, step)

    def close(self) -> None:
        """Ends TensorBoard's thread."""
        if self._events:
            self._events.close()


class MetricsFile:
    """metrics.jsonl of a run: one JSON object per line, in the order of the steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, report: Mapping[str, Any]) -> None:
        """Adds a line and flushes it to the disk; ValueError for a number JSON does not know."""
        line = json.dumps(report, allow_nan=False) + "\n"
        with open(self.path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                file.write(line.encode())
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)  # a full disk may have taken half a line
                raise

    def read(self) -> list[dict[str, Any]]:
        """The lines so far."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def drop_after(self, step: int) -> None:
        """Drops what lies past the checkpoint of that step, and a line that was cut off."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = "".join(line + "\n" for line in lines if _step_of(line, default=step + 1) <= step)
        write_whole(self.path, kept.encode())


def _step_of(line: str, default: int) -> int:
    """The step of a line; `default` where it is no whole JSON object with one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return default


def flatten(report: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """The report without nesting: what lies within an object gets the name "outer/inner"."""
    flat: dict[str, Value] = {}
    for key, value in report.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def table_of(reports: list[dict[str, Any]]) -> str:
    """The reports as CSV: a column per key in the order they came up, empty where null or none."""
    rows = [flatten(report) for report in reports]
    nested = {key.split("/")[0] for row in rows for key in row if "/" in key}
    columns = dict.fromkeys(key for row in rows for key in row if key not in nested)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class TensorBoard:
    """Every number of a report as a curve over the steps, and pictures.

    ValueError where it is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "--tensorboard: TensorBoard is not installed; pip install 'fullfeed[tensorboard]'"
            ) from error
        self._make, self._folder = SummaryWriter, folder
        self._writer: Any = None  # a SummaryWriter, which makes its file at once

    def open(self, step: int) -> None:
        """Begins to write; what was written after that step is no longer shown."""
        self._writer = self._make(str(self._folder), purge_step=step + 1)

    def append(self, report: Mapping[str, Any]) -> None:
        """Adds a point to each curve; what is no number has none."""
        for name, value in flatten(report).items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, report["step"])
        self._writer.flush()

    def draw(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Adds a picture, uint8 (height, width, 3)."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Ends its thread, if it was opened."""
        if self._writer:
            self._writer.close()
