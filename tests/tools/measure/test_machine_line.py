"""The line of a machine tells what is recorded of it, and nothing where it is not."""

from typing import Any

import pytest

from tools.measure.machine_line import machine_line

MACHINE: dict[str, Any] = {
    "cpu": "A CPU", "cores": 2, "memory_bytes": 24 * 2**30, "gpu": None, "python": "3.11.7",
    "versions": {"torch": "2.13.0", "dali": None},
    "date_utc": "2026-11-21T01:25:09+00:00", "commit": "0123456789abcdef+changes",
}  # fmt: skip
GPU = {
    "clocks.sm": "1980 MHz", "clocks.max.sm": "1980 MHz", "clocks.mem": "2619 MHz",
    "power.limit": "700.00 W", "driver_version": "580.1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, "*A CPU, 2 cores, 24 GiB, GPU: none; Python 3.11.7, torch 2.13.0; "),
        (
            {"clocks": {"cpu": {"mhz": 2800, "max_mhz": 3500}, "gpu": None}, "drive": None},
            "*A CPU at 2,800 of 3,500 MHz, 2 cores, 24 GiB, GPU: none; ",
        ),
        (
            {"clocks": {"cpu": {"mhz": 2800, "max_mhz": 0}, "gpu": [GPU, GPU]}, "gpu": "H200"},
            "*A CPU at 2,800 MHz, 2 cores, 24 GiB, GPU: H200 at 1980 MHz of 1980 MHz, memory "
            "2619 MHz, 700.00 W, driver 580.1; ",
        ),
        (
            {
                "clocks": {"cpu": None, "gpu": None},
                "drive": {
                    "device": "/dev/nvme0n1", "filesystem": "ext4", "model": "Fast 1",
                    "rotational": False,
                },
            },
            "*A CPU, 2 cores, 24 GiB, SSD Fast 1 (ext4), GPU: none; ",
        ),
        (
            {
                "drive": {
                    "device": "overlay", "filesystem": "overlay", "model": None,
                    "rotational": None,
                },
            },
            "*A CPU, 2 cores, 24 GiB, drive overlay (overlay), GPU: none; ",
        ),
    ],
)  # fmt: skip
def test_a_machine_has_its_clocks_and_drive_where_they_are_recorded(
    found: dict[str, Any], told: str
) -> None:
    """Reports made before they were recorded have neither."""
    report = {"machine": {**MACHINE, **found}, "settings": {"repeats": 5}}
    assert machine_line(report).startswith(told)
    assert machine_line(report).endswith("2026-11-21, commit 012345678 with changes, 5 rounds.*")


def test_what_cannot_be_found_out_is_said_or_left_out() -> None:
    report = {
        "machine": {**MACHINE, "memory_bytes": None, "commit": None}, "settings": {"repeats": 7}
    }  # fmt: skip
    assert machine_line(report) == (
        "*A CPU, 2 cores, ?, GPU: none; Python 3.11.7, torch 2.13.0; 2026-11-21, commit unknown, "
        "7 rounds.*"
    )
