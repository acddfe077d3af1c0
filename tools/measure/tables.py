"""Tables of a Markdown page made from measurements kept as JSON: no number is typed by hand.

A page holds, where a table belongs, a line `<!-- table: results/FILE.json KIND -->` and, after the
table, `<!-- end of table -->`. KIND is one of KINDS; FILE is relative to the project's root.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.moments import ROOTS_2012
from tools.measure.machine_line import machine_line
from tools.measure.plots import images_text
from tools.measure.preflight_table import hours_text, memory_text

START = re.compile(r"<!-- table: (?P<file>\S+) (?P<kind>\S+) -->\n")
END = "<!-- end of table -->"
Report = Mapping[str, Any]


def fill_tables(page: str, root: Path) -> str:
    """The text of a page with every table made anew from its file below `root`.

    Where a file is missing, the table says so. ValueError for a file that is no report, an unknown
    kind, a start without an end.
    """
    parts, at = [], 0
    for start in START.finditer(page):
        end = page.find(END, start.end())
        if end < 0 or START.search(page, start.end(), end):
            raise ValueError(f"{start[0].strip()} has no {END} of its own")
        parts += [page[at : start.end()], _table(root, start["file"], start["kind"]), "\n"]
        at = end
    return "".join([*parts, page[at:]])


def _table(root: Path, name: str, kind: str) -> str:
    path = root / name
    if kind not in KINDS:
        raise ValueError(f"no table of kind {kind!r}; there are: {', '.join(KINDS)}")
    try:
        return KINDS[kind](json.loads(path.read_bytes()))
    except FileNotFoundError:
        return f"*Not measured yet: there is no {name}.*"
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a report of tools/benchmark.py --json that has {kind} "
            f"({type(error).__name__}: {error})"
        ) from error


def speeds(report: Report) -> str:
    """Images per second of each contestant: median, least to most."""
    rows = [
        [result["name"], *_spread(result["images_per_second"], ",.0f")]
        for result in report["results"]
    ]
    return _markdown(["images/s", "median", "least–most"], rows)


def ratios(report: Report) -> str:
    """Ratios round by round: median, least to most; of CPU time beside them, where measured."""
    of_cpu = report.get("cpu_ratios", {})
    rows = [
        [
            name.replace("/", " ÷ "),
            *_spread(ratio, ".2f"),
            *(_spread(of_cpu[name], ".2f") if name in of_cpu else [""] * 2 * bool(of_cpu)),
        ]
        for name, ratio in report["ratios"].items()
    ]
    cold = ", page cache cold" if report["settings"].get("cold") else ""
    head = [f"ratio, round by round{cold}", "median", "least–most"]
    if of_cpu:
        head[1:] = ["wall clock: median", "least–most", "CPU time: median", "least–most"]
    return _markdown(head, rows)


def stages(report: Report) -> str:
    """Shares of the time of one worker."""
    shares = report["stages"]
    return _markdown(list(shares), [[f"{share:.0%}" for share in shares.values()]])


def errors(report: Report) -> str:
    """Top-1 errors of each recipe: median, least to most, seed by seed; what a run took."""
    rows = [
        [
            result["name"],
            *_spread(result["top1_error"], ".1%"),
            ", ".join(f"{run['top1_error']:.1%}" for run in result["runs"]),
            f"{result['epochs']:,}",
            f"{result['train_seconds']['median']:.0f} s",
        ]
        for result in report["results"]
    ]
    return _markdown(
        ["top-1 error", "median", "least–most", "seed by seed", "epochs", "training"], rows
    )


def rates(report: Report) -> str:
    """Top-1 errors of torchvision's recipe with seed 0 at each learning rate that was tried.

    A sentence where none was: with --no-torchvision.
    """
    tried = report.get("rates")
    if not tried:
        return "In this run no learning rate of torchvision's recipe was searched for."
    head = ["torchvision AlexNet, seed 0, rate", *(f"{one['rate']:g}" for one in tried)]
    return _markdown(head, [["top-1 error", *(f"{one['top1_error']:.1%}" for one in tried)]])


def fed(report: Report) -> str:
    """Fed ratios, of each process where there are several, and in all; where the time went."""
    ranks = report["ranks"] if len(report["ranks"]) > 1 else []
    rows = [[f"rank {each['rank']}", *_spread(each["fed_ratio"], ".3f")] for each in ranks]
    rows.append(["in all", *_spread(report["fed_ratio"], ".3f")])
    shares = report["attribution"]
    told = ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in shares.items())
    table = _markdown(["fed ratio: real ÷ step alone", "median", "least–most"], rows)
    of = report["settings"]
    run = f"{of['preset']} at width {of['width']:g}, {of['batch_size']:,} images a step"
    return (
        f"{table}\n\nOf {run}, fed by {of['backend']}. Time of a step with real data: {told}. In "
        f"its own words: {report['advice']}."
    )


def costs(report: Report) -> str:
    """CPU time that a loader costs the thread which takes its batches, and memory it keeps.

    Of a pass at a time, so of an epoch: how much from the first to the last, and the range of all.
    """
    rows = []
    for result in report["results"]:
        kept = {name: f"{mb:,.0f}" for name, mb in result["anonymous_mb"].items()}
        memory = [kept["first"], kept["last"], f"{kept['min']}–{kept['max']}"]
        rows.append([result["name"], *_spread(result["caller_us_per_image"], ".1f"), *memory])
    of = report["settings"]
    head = [f"CPU of the caller, µs an image, {of['batch_size']:,} a batch", "median"]
    memory = ["MB kept after the first pass", f"after the last of {of['repeats']}", "least–most"]
    return _markdown([*head, "least–most", *memory], rows)


def scale(report: Report) -> str:
    """Seconds of the clock and of the CPU, and the peak of memory, at so many simulated images."""
    rows = [
        [
            result["name"],
            *_spread(result["seconds"], ".2f"),
            *_spread(result["cpu_seconds"], ".2f"),
            f"{result['peak_mb']['max']:,.0f} MB",
        ]
        for result in report["results"]
    ]
    head = [f"{report['settings']['images']:,} images", "seconds: median", "least–most"]
    return _markdown([*head, "CPU seconds: median", "least–most", "peak of memory"], rows)


def preflight(report: Report) -> str:
    """What a training is to expect: as it is here, and of several GPUs; memory; what is short."""
    expected, settings = report["expected"], report["settings"]
    rows = [["this machine", *_expectation(expected), "", ""]]
    for each in report["outlook"]:
        fed = {True: "yes", False: f"no: {each['short']}", None: "no GPU"}[each["fed"]]
        name = f"{each['devices']} GPU{'s' * (each['devices'] > 1)}"
        rows.append([name, *_expectation(each), f"{each['delivered']:,.0f}", fed])
    head = [f"{settings['preset']}, width {settings['width']:g}", "images/s", "an epoch"]
    table = _markdown([*head, f"{settings['epochs']} epochs", "delivered images/s", "fed"], rows)
    told = f"{memory_text(report['memory'])}. In its own words: {report['advice']}."
    return f"{table}\n\n{told[0].upper()}{told[1:]}"


def _expectation(of: Mapping[str, Any]) -> list[str]:
    if of["images_per_second"] is None:
        return ["?", "?", "?"]
    speed = images_text(of["images_per_second"])
    return [speed, hours_text(of["hours_per_epoch"]), hours_text(of["hours"])]


def lighting(report: Report) -> str:
    """Standard deviations of a data set's colours, of tools/compute_pca.py's pca.json."""
    roots = [f"{value**0.5:.1f}" for value in report["eigenvalues"]]
    ours = [f"{report['num_pixels']:,} pixels", *roots]
    of_2012 = ["ImageNet, 2012", *map(str, ROOTS_2012)]
    return _markdown(["square roots of the eigenvalues", "1", "2", "3"], [ours, of_2012])


KINDS: dict[str, Callable[[Report], str]] = {
    "speeds": speeds,
    "ratios": ratios,
    "stages": stages,
    "errors": errors,
    "rates": rates,
    "fed": fed,
    "costs": costs,
    "scale": scale,
    "preflight": preflight,
    "lighting": lighting,
    "machine": machine_line,
}


def _spread(spread: Mapping[str, float], form: str) -> list[str]:
    least, most = format(spread["min"], form), format(spread["max"], form)
    return [format(spread["median"], form), f"{least}–{most}"]


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
