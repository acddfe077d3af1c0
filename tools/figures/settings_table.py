"""Settings of runs as rows of names and values, and those in which runs differ."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tools.figures.axis import written
from tools.figures.run_record import RunRecord, last_finite, series

LEFT_OUT = ("classes",)
LONGEST = 60  # characters of a value
DIGEST = re.compile(r"([0-9a-f]{12})[0-9a-f]{28,}")  # of which the beginning tells enough
LIBRARIES = ("fullfeed", "torch", "numpy", "simplejpeg", "pillow", "jinja2")


@dataclass(frozen=True)
class Row:
    """A name and its value in each run; result: whether it was measured, not chosen."""

    name: str
    values: tuple[str, ...]
    result: bool = False


def settings(run: RunRecord) -> dict[str, str]:
    """A run's settings by dotted name, with the preset's own prefix left out."""
    config = run.config or (run.checkpoint.config if run.checkpoint else {})
    found = _flat(config)
    classes = config.get("classes")
    if isinstance(classes, list):
        found["classes"] = f"{len(classes):,}"
    plain = {name.removeprefix("preset."): value for name, value in found.items()}
    return {"preset": plain.pop("name"), **plain} if "name" in plain else plain


def versions(run: RunRecord) -> dict[str, str]:
    """What the run's checkpoint says it was made by."""
    return _flat(run.checkpoint.made_by) if run.checkpoint else {}


def versions_here() -> dict[str, str]:
    """What this page was made by."""
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def results(run: RunRecord) -> dict[str, str]:
    """What came out of a run, in the words of the page."""
    best = [value for _, value in series(run.reports, "top1_error") if value == value]
    return {
        "epochs finished": f"{len(run.reports):,}",
        "best top-1 error": written(min(best, default=None), "%"),
        "last top-1 error": written(last_finite(run.reports, "top1_error"), "%"),
        "last top-5 error": written(last_finite(run.reports, "top5_error"), "%"),
        "last validation loss": written(last_finite(run.reports, "val_loss")),
        "last speed": written(last_finite(run.reports, "images_per_second"), "images/s"),
        "last fed ratio": written(last_finite(run.reports, "fed_ratio"), "%"),
    }


def differing(runs: Sequence[RunRecord]) -> list[Row]:
    """Results of all runs, and the settings and versions that are not the same in all."""
    told = [results(run) for run in runs]
    rows = [Row(name, tuple(each[name] for each in told), result=True) for name in told[0]]
    chosen = [settings(run) | versions(run) for run in runs]
    for name in dict.fromkeys(name for each in chosen for name in each):
        values = tuple(each.get(name, "–") for each in chosen)
        if len(set(values)) > 1:
            rows.append(Row(name, values))
    return rows


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if name in LEFT_OUT:
            continue
        if isinstance(inner, Mapping):
            found |= _flat(inner, f"{name}.")
        else:
            found[name] = _text(inner)
    return found


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        parts = (f"({_text(one)})" if isinstance(one, list) else _text(one) for one in value)
        text = ", ".join(parts) or "none"
    else:
        text = str(value)
    return text


def shortened(text: str) -> str:
    """A value as it is shown: digests to twelve digits, what is long to its beginning."""
    text = DIGEST.sub(r"\1…", text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
