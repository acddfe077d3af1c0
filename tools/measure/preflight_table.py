"""A preflight's report, for people."""

from collections.abc import Mapping
from typing import Any

from tools.measure.plots import images_text
from tools.measure.table import report_table, row


def preflight_table(report: Mapping[str, Any]) -> str:
    """Speeds, hours, one line per number of GPUs, memory, what is short."""
    settings, expected = report["settings"], report["expected"]
    lines = [
        report_table(report),
        "",
        f"{settings['preset']} on the {settings['device']} of this machine: "
        f"{images_text(expected['images_per_second'])} images/s, "
        f"{hours_text(expected['hours_per_epoch'])} an "
        f"epoch of {settings['images']:,} images, {hours_text(expected['hours'])} for "
        f"{settings['epochs']} epochs",
        "",
        row("GPUs", "images/s", "an epoch", "in all", "delivered", "fed"),
    ]
    for each in report["outlook"]:
        fed = {True: "yes", False: f"no: {each['short']}", None: "no GPU"}[each["fed"]]
        known = each["images_per_second"] is not None
        told = (
            [
                f"{each['images_per_second']:,.0f}",
                hours_text(each["hours_per_epoch"]),
                hours_text(each["hours"]),
            ]
            if known
            else ["?", "?", "?"]
        )
        lines.append(row(str(each["devices"]), *told, f"{each['delivered']:,.0f}", fed))
    return "\n".join([*lines, "", memory_text(report["memory"]), report["advice"]])


def memory_text(memory: Mapping[str, Any]) -> str:
    """What a process needs, what is there, and what the shards and the decoded images take."""
    gpu, fit = memory["gpu_bytes"], "fit" if memory["shards_fit"] else "do not fit"
    parts = [
        f"{_bytes(memory['process_bytes'])} a process" if memory["process_bytes"] else "",
        f"{_bytes(gpu)} in use on its GPU" if gpu else "",
        f"shards of {_bytes(memory['shards_bytes'])} {fit} in {_bytes(memory['free_bytes'])} free",
        f"decoded images would take {_bytes(memory['resident_bytes'])} (--resident)",
    ]
    return "memory: " + "; ".join(part for part in parts if part)


def _bytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"


def hours_text(hours: float) -> str:
    """A time in the unit that suits it."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:,.1f} min" if hours >= 1 / 60 else f"{3600 * hours:,.1f} s"
