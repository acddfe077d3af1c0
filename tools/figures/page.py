"""The report as one page that needs nothing else: no script, no request, its own style.

Every text goes through the template's escaping; the page's policy lets a browser load nothing.
"""

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tools.figures.axis import written
from tools.figures.chapter import Chapter
from tools.figures.curves import events, feeding_charts, learning_charts, waiting
from tools.figures.dataset_account import Account
from tools.figures.run_record import MAX_COMPARED, RunRecord, last_finite, series
from tools.figures.settings_table import differing, settings, shortened, versions, versions_here

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Tile:
    """A figure in large type, what it is, and a word on it."""

    name: str
    value: str
    note: str = ""


def render_page(chapters: Sequence[Chapter], accounts: Sequence[Account]) -> str:
    """The page, of one run or of several compared."""
    assert 1 <= len(chapters) <= MAX_COMPARED
    runs = [chapter.run for chapter in chapters]
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        written=written, share=_share, breakable=_breakable, shortened=shortened
    )
    return environment.get_template("page.html").render(
        style=Markup(style),  # noqa: S704
        policy=_policy(style),
        runs=runs,
        chapters=chapters,
        accounts=accounts,
        headline=[_headline(run) for run in runs],
        tiles=_tiles(runs[0]) if len(runs) == 1 else [],
        learning=learning_charts(runs),
        feeding=feeding_charts(runs),
        waits=[waiting(run) for run in runs],
        events=[events(run) for run in runs],
        fed=[run for run in runs if last_finite(run.reports, "fed_ratio") is not None],
        differences=differing(runs) if len(runs) > 1 else [],
        settings=[(run, settings(run), versions(run)) for run in runs],
        here=versions_here(),
        remarks=_remarks(chapters, accounts),
    )


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        f"form-action 'none'"
    )


def _share(value: float, width: float = 100.0) -> str:
    """A fraction as a length of a drawing."""
    return f"{width * min(max(value, 0.0), 1.0):.2f}"


def _breakable(name: str) -> Markup:
    """A name that may go on in another line after a dot, a slash or an underscore."""
    return Markup(re.sub(r"([./_])", r"\1<wbr>", str(escape(name))))  # noqa: S704


def _headline(run: RunRecord) -> str:
    """The run in a sentence."""
    preset = run.setting("preset.name") or "a run of unknown settings"
    planned, done = run.setting("preset.training.epochs"), len(run.reports)
    epochs = f"{done:,} of {planned:,} epochs" if planned else f"{done:,} epochs"
    classes = run.setting("classes")
    known = f", {len(classes):,} classes" if isinstance(classes, list) else ""
    width = run.setting("width")
    narrowed = f" at {width:g} of the width" if width not in (None, 1.0) else ""
    return f"{preset}{narrowed}, {epochs}{known}"


def _tiles(run: RunRecord) -> list[Tile]:
    errors = [(value, epoch) for epoch, value in series(run.reports, "top1_error")]
    best = min((one for one in errors if math.isfinite(one[0])), default=None)
    waits = [one.share for one in waiting(run)]
    fed = last_finite(run.reports, "fed_ratio")
    at_best = next((r for r in run.reports if best and r["epoch"] == best[1]), {})
    return [
        Tile(
            "best top-1 error", written(best[0] if best else None, "%"),
            f"validation, epoch {best[1]:g}" if best else "no epoch finished",
        ),
        Tile("top-5 error", _of(at_best, "top5_error", "%"), "in that epoch"),
        Tile("validation loss", _of(at_best, "val_loss"), "in that epoch"),
        Tile(
            "images per second", written(last_finite(run.reports, "images_per_second")),
            "training, last epoch",
        ),
        Tile("waited for data", written(sum(waits), "%") if waits else "–", "of training time"),
        Tile("fed ratio", written(fed, "%"), "of the ceiling" if fed else "no ceiling measured"),
    ]  # fmt: skip


def _of(report: dict[str, Any], key: str, unit: str = "") -> str:
    value = report.get(key)
    return written(value, unit) if isinstance(value, float) else "–"


def _remarks(chapters: Sequence[Chapter], accounts: Sequence[Account]) -> list[tuple[str, str]]:
    """(run or nothing, sentence) of all that the page could not show."""
    alone = len(chapters) == 1
    found = [
        ("" if alone else chapter.run.name, text)
        for chapter in chapters
        for text in (*chapter.run.remarks, *chapter.remarks)
    ]
    found += [("", text) for account in accounts for text in account.remarks]
    return list(dict.fromkeys(found))
