"""The drive and the clocks: read from files made for it, and nothing where nobody says."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.measure import drives
from tools.measure.drives import cpu_clocks, drive_of, gpu_clocks, parse_gpu_clocks


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the second partition of a spinning disk, as Linux shows it."""
    whole = tmp_path / "sys/devices/sda"
    (whole / "device").mkdir(parents=True)
    (whole / "device/model").write_text("Fast Disk 9\n")
    (whole / "queue").mkdir()
    (whole / "queue/rotational").write_text("1\n")
    (whole / "sda2").mkdir()
    (whole / "sda2/partition").write_text("2\n")
    blocks = tmp_path / "sys/class/block"
    blocks.mkdir(parents=True)
    (blocks / "sda2").symlink_to(whole / "sda2")
    monkeypatch.setattr(drives, "BLOCK_DEVICES", blocks)
    folder = tmp_path / "data/shards"
    folder.mkdir(parents=True)
    mounts = [
        SimpleNamespace(device="/dev/sdb1", mountpoint="/", fstype="ext4"),
        SimpleNamespace(device="/dev/sda2", mountpoint=str(tmp_path / "data"), fstype="xfs"),
        SimpleNamespace(device="/dev/sdc1", mountpoint=str(tmp_path / "dat"), fstype="vfat"),
    ]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    return folder


def test_the_drive_is_that_of_the_deepest_mount_and_of_the_whole_disk(disk: Path) -> None:
    assert drive_of(disk) == {
        "device": "/dev/sda2",
        "filesystem": "xfs",
        "model": "Fast Disk 9",
        "rotational": True,
    }


def test_what_linux_does_not_say_is_none(disk: Path) -> None:
    assert drive_of(Path("/")) == {
        "device": "/dev/sdb1", "filesystem": "ext4", "model": None, "rotational": None,
    }  # fmt: skip
    assert drive_of(disk / "nowhere") is None


def test_each_gpu_has_its_clocks_power_and_driver() -> None:
    text = "1980 MHz, 1980 MHz, 2619 MHz, 700.00 W, 580.65.06\n345 MHz, 1980 MHz, 0, 1 W, 580\n"
    first, second = parse_gpu_clocks(text)
    assert first == {
        "clocks.sm": "1980 MHz", "clocks.max.sm": "1980 MHz", "clocks.mem": "2619 MHz",
        "power.limit": "700.00 W", "driver_version": "580.65.06",
    }  # fmt: skip
    assert second["clocks.sm"] == "345 MHz"


def test_without_nvidia_smi_there_are_no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", absent)
    assert gpu_clocks() is None


def test_a_processor_s_clock_is_a_positive_number_where_it_is_known() -> None:
    found = cpu_clocks()
    assert found is None or (found["mhz"] > 0 and set(found) == {"mhz", "max_mhz"})
