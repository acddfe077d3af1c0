"""What a measurement ran on, with what and when, in one line for a page."""

from collections.abc import Mapping, Sequence
from typing import Any

COMMIT_CHARACTERS = 9


def machine_line(report: Mapping[str, Any]) -> str:
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


def _commit(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    number, changed, _ = commit.partition("+")
    return number[:COMMIT_CHARACTERS] + (" with changes" if changed else "")
