"""The drive that files lie on and the clocks that processors run at, as Linux and NVIDIA say."""

import subprocess
from pathlib import Path
from typing import Any

import psutil

BLOCK_DEVICES = Path("/sys/class/block")
GPU_FIELDS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "driver_version")


def drive_of(folder: Path) -> dict[str, Any] | None:
    """device, filesystem, model and rotational (whether it has a spinning disk) of the drive that
    a folder lies on; None of what cannot be found out, and of what is no folder here."""
    if not isinstance(folder, Path) or not folder.exists():
        return None
    place = folder.resolve()
    mounts = [
        part
        for part in psutil.disk_partitions(all=True)
        if place.is_relative_to(part.mountpoint)
    ]
    if not mounts:
        return None
    mount = max(mounts, key=lambda part: len(part.mountpoint))
    block = _whole_disk(Path(mount.device).name)
    return {
        "device": mount.device,
        "filesystem": mount.fstype,
        "model": _text(block / "device/model"),
        "rotational": {"0": False, "1": True}.get(_text(block / "queue/rotational") or ""),
    }


def _whole_disk(name: str) -> Path:
    """Of a partition, the folder of the disk it is a part of."""
    block = (BLOCK_DEVICES / name).resolve()
    return block.parent if (block / "partition").exists() else block


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def cpu_clocks() -> dict[str, float] | None:
    """MHz now, mean over the cores, and the most they may reach; 0 where it is not said."""
    found = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return {"mhz": round(found.current), "max_mhz": round(found.max)} if found else None


def gpu_clocks() -> list[dict[str, str]] | None:
    """Clocks, power limit and driver of each GPU, as nvidia-smi says; None without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpu_clocks(told.stdout)


def parse_gpu_clocks(text: str) -> list[dict[str, str]]:
    """A line per GPU, of values separated by commas."""
    lines = [line.split(",") for line in text.splitlines() if line.strip()]
    return [dict(zip(GPU_FIELDS, map(str.strip, values), strict=True)) for values in lines]
