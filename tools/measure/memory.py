"""What a process keeps in memory, and how to make it read its files from the disk again."""

import os
from collections.abc import Iterable
from pathlib import Path

from tools.measure.feed import FeedSettings

STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int | None:
    """This process's resident memory that belongs to no file; None where Linux does not say."""
    return _status_bytes("RssAnon")


def peak_bytes() -> int | None:
    """The most memory that this process ever had resident; None where Linux does not say."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int | None:
    if not STATUS.is_file():
        return None
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024  # it is in kB
    return None


def feed_files(settings: FeedSettings) -> list[Path]:
    """Every file that a contestant reads images from: the shards, and what it made of them."""
    found = [*settings.shards.glob("*.tar"), *settings.scratch.glob("*")]
    return sorted({path.resolve() for path in found})


def evict(paths: Iterable[Path]) -> None:
    """Drops files from the page cache; what a process has mapped and looked at stays there."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)  # pages not yet written cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
