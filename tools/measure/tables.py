"""Tables of a Markdown page made from measurements kept as JSON: no number is typed by hand.

A page holds, where a table belongs, a line `<!-- table: results/FILE.json KIND -->` and, after the
table, `<!-- end of table -->`. KIND is one of KINDS; FILE is relative to the project's root.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

START = re.compile(r"<!-- table: (?P<file>\S+) (?P<kind>\S+) -->\n")
END = "<!-- end of table -->"
COMMIT_CHARACTERS = 9
Report = Mapping[str, Any]


def fill_tables(page: str, root: Path) -> str:
    """The text of a page with every table made anew from its file below `root`.

    ValueError for a file that is missing or no report, an unknown kind, a start without an end.
    """
    parts, at = [], 0
    for start in START.finditer(page):
        end = page.find(END, start.end())
        if end < 0 or START.search(page, start.end(), end):
            raise ValueError(f"{start[0].strip()} has no {END} of its own")
        parts += [page[at : start.end()], _table(root / start["file"], start["kind"]), "\n"]
        at = end
    return "".join([*parts, page[at:]])


def _table(path: Path, kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"no table of kind {kind!r}; there are: {', '.join(KINDS)}")
    try:
        return KINDS[kind](json.loads(path.read_bytes()))
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
    """Ratios round by round: median, least to most."""
    rows = [
        [name.replace("/", " ÷ "), *_spread(ratio, ".2f")]
        for name, ratio in report["ratios"].items()
    ]
    return _markdown(["ratio, round by round", "median", "least–most"], rows)


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
    """Top-1 errors of torchvision's recipe with seed 0 at each learning rate that was tried."""
    tried = report["rates"]
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
    advice = report["advice"]
    return f"{table}\n\nTime of a step with real data: {told}. In its own words: {advice}."


def machine(report: Report) -> str:
    """On what, with what and when it was measured, in one line; what is not recorded is left out.

    A clock is that at the time of measuring, and the most there is where the system says it.
    """
    found = report["machine"]
    memory = f"{found['memory_bytes'] / 2**30:.0f} GiB" if found["memory_bytes"] else "?"
    clocks = found.get("clocks") or {}
    parts = [
        f"{found['cpu']}{_cpu_clock(clocks.get('cpu'))}",
        f"{found['cores']} cores",
        memory,
        *_drive(found.get("drive")),
        f"GPU: {found['gpu'] or 'none'}{_gpu_clocks(clocks.get('gpu'))}",
    ]
    versions = ", ".join(f"{name} {known}" for name, known in found["versions"].items() if known)
    return (
        f"*{', '.join(parts)}; "
        f"Python {found['python']}, {versions}; {found['date_utc'][:10]}, commit "
        f"{_commit(found['commit'])}, {report['settings']['repeats']} rounds.*"
    )


def _cpu_clock(clock: Mapping[str, float] | None) -> str:
    if not clock or not clock["mhz"]:
        return ""
    most = f" of {clock['max_mhz']:,.0f}" if clock["max_mhz"] else ""
    return f" at {clock['mhz']:,.0f}{most} MHz"


def _gpu_clocks(gpus: Sequence[Mapping[str, str]] | None) -> str:
    """Of the first: those of a machine are alike."""
    if not gpus:
        return ""
    of = gpus[0]
    return (
        f" at {of['clocks.sm']} of {of['clocks.max.sm']}, memory {of['clocks.mem']}, "
        f"{of['power.limit']}, driver {of['driver_version']}"
    )


def _drive(drive: Mapping[str, Any] | None) -> list[str]:
    """The drive that the shards were read from."""
    if not drive:
        return []
    kind = {True: "disk", False: "SSD"}.get(drive["rotational"], "drive")
    return [f"{kind} {drive['model'] or drive['device']} ({drive['filesystem']})"]


KINDS: dict[str, Callable[[Report], str]] = {
    "speeds": speeds,
    "ratios": ratios,
    "stages": stages,
    "errors": errors,
    "rates": rates,
    "fed": fed,
    "machine": machine,
}


def _spread(spread: Mapping[str, float], form: str) -> list[str]:
    least, most = format(spread["min"], form), format(spread["max"], form)
    return [format(spread["median"], form), f"{least}–{most}"]


def _commit(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    number, changed, _ = commit.partition("+")
    return number[:COMMIT_CHARACTERS] + (" with changes" if changed else "")


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
