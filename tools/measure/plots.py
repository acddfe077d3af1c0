"""A report as a picture: bars with their spread; of a fed one, images per second step by step."""

import importlib.util
import io
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # an extra, and a second to import
    from matplotlib.axes import Axes

WIDTH_INCHES, BAR_INCHES, TIMELINE_INCHES = 9.0, 0.42, 3.0
DPI = 120
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # tell apart by all


def require_matplotlib() -> None:
    """ValueError, with the command that installs it, where matplotlib is not there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot: matplotlib is not installed; pip install 'fullfeed[plot]'")


def images_text(speed: float) -> str:
    """Images per second; of few two digits."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def plot_report(report: Mapping[str, Any]) -> bytes:
    """A PNG file of an object that `build_report` or `feeding` made; its results are not empty."""
    from matplotlib.figure import Figure

    results, timeline = report["results"], report.get("timeline")
    heights = [1.2 + BAR_INCHES * len(results)] + ([TIMELINE_INCHES] if timeline else [])
    figure = Figure((WIDTH_INCHES, sum(heights) + 0.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_bars(axes[0], report)
    if timeline:
        _draw_timeline(axes[1], timeline)
    machine = report["machine"]
    told = f"{machine['cpu']}, {machine['cores']} cores, GPU: {machine['gpu'] or 'none'}"
    figure.supxlabel(f"{told}; {machine['date_utc'][:10]}", fontsize=8, color="0.35")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_bars(axes: "Axes", report: Mapping[str, Any]) -> None:
    """Medians, and thin lines from the least to the largest."""
    results = report["results"]
    speeds = [result["images_per_second"] for result in results]
    places, medians = range(len(results)), [speed["median"] for speed in speeds]
    spread = [
        [speed["median"] - speed["min"] for speed in speeds],
        [speed["max"] - speed["median"] for speed in speeds],
    ]
    colours = dict(zip(report.get("timeline", ()), COLOURS, strict=False))
    shown = [colours.get(result["name"], COLOURS[0]) for result in results]
    axes.barh(places, medians, color=shown, height=0.62)
    axes.errorbar(medians, places, xerr=spread, fmt="none", ecolor="black", capsize=4, lw=1)
    for place, speed in zip(places, speeds, strict=True):
        axes.annotate(
            images_text(speed["median"]), (speed["max"], place), (6, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_yticks(places, [result["name"] for result in results])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(speed["max"] for speed in speeds))
    axes.xaxis.set_major_formatter("{x:,.4g}" if medians and max(medians) < 10 else "{x:,.0f}")
    repeats = report["settings"]["repeats"]
    axes.set_xlabel(f"images per second: median of {repeats} rounds, least to most")
    axes.spines[["top", "right"]].set_visible(False)
    if "fed_ratio" in report:
        ratio = report["fed_ratio"]
        title = f"fed ratio {ratio['median']:.3f} ({ratio['min']:.3f}–{ratio['max']:.3f})"
        axes.set_title("\n".join([title, *textwrap.wrap(report["advice"], 100)]), fontsize=9)


def _draw_timeline(axes: "Axes", timeline: Mapping[str, list[float]]) -> None:
    """A line for each contestant over the last round."""
    for (name, speeds), colour in zip(timeline.items(), COLOURS, strict=False):
        places = [(i + 0.5) / len(speeds) for i in range(len(speeds))]
        axes.plot(places, speeds, label=name, color=colour, lw=1.2, marker=".", ms=4)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("the last round, from its first step to its last")
    axes.set_ylabel("images per second")
    axes.legend(  # above the lines, which may be anywhere
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(timeline), fontsize=9, frameon=False
    )
    axes.spines[["top", "right"]].set_visible(False)
