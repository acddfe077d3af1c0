"""What a measurement ran on: processor, memory, GPU, clocks, drive, versions, date, commit."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from pipeline.cores import available_cores
from tools.measure.drives import cpu_clocks, drive_of, gpu_clocks

LIBRARIES = ("torch", "numpy", "simplejpeg", "pillow")
DALI_PREFIX = "nvidia-dali-cuda"
CPU_INFO = Path("/proc/cpuinfo")
MODEL_FIELDS = ("model name", "Model", "Hardware")  # x86, then what ARM kernels say


def describe_machine(
    repository: Path, packages: Sequence[str] = (), *, shards: Path | None = None
) -> dict[str, Any]:
    """The facts a published number carries, JSON-able; what cannot be found out is None.

    repository: a folder within the checkout whose commit counts. packages: further distributions
    whose versions matter. shards: a folder that is read from, whose drive matters.
    """
    return {
        "cpu": cpu_model(CPU_INFO.read_text() if CPU_INFO.is_file() else ""),
        "cores": available_cores(),
        "memory_bytes": _memory_bytes(),
        "gpu": _gpu_name(),
        "clocks": {"cpu": cpu_clocks(), "gpu": gpu_clocks()},
        "drive": None if shards is None else drive_of(shards),
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            **{name: _version(name) for name in (*LIBRARIES, *packages)},
            "dali": _dali_version(),
        },
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(repository),
        "load_average": _load_average(),
    }


def cpu_model(cpu_info: str) -> str | None:
    """The processor's name in the text of /proc/cpuinfo, or as Python's platform module has it."""
    fields: dict[str, str] = {}
    for line in cpu_info.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    named = (fields[name] for name in MODEL_FIELDS if fields.get(name))
    return next(named, None) or platform.processor() or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _gpu_name() -> str | None:
    import torch  # seconds to import: only when a measurement is described

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _dali_version() -> str | None:
    """DALI's version with its CUDA build, such as "2.4.0 (cuda130)"; DALI is not imported."""
    for found in distributions():
        name = found.name or ""
        if name.startswith(DALI_PREFIX):
            return f"{found.version} ({name.removeprefix('nvidia-dali-')})"
    return None


def _commit(repository: Path) -> str | None:
    """The commit checked out, with "+changes" where tracked files differ from it."""
    git = ["git", "-C", str(repository)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if changes else commit


def _load_average() -> list[float] | None:
    """Over 1, 5 and 15 minutes."""
    if not hasattr(os, "getloadavg"):
        return None
    return [round(value, 2) for value in os.getloadavg()]
