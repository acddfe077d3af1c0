"""Memory is the process's own, and what is evicted is no longer in the page cache."""

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tools.measure.feed import FeedSettings
from tools.measure.memory import anonymous_bytes, evict, feed_files

PAGE_BYTES = mmap.PAGESIZE


def resident_share(path: Path) -> float:
    """How much of a file is in the page cache, 0..1, as mincore says."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // PAGE_BYTES))()
        start = ctypes.c_char.from_buffer(mapped)
        address, size = ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped))
        assert ctypes.CDLL(None).mincore(address, size, pages) == 0
        del start
        return sum(page & 1 for page in pages) / len(pages)


def test_anonymous_memory_grows_with_what_is_allocated_and_touched() -> None:
    before = anonymous_bytes()
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # NumPy may be given what was freed before
    with mmap.mmap(-1, 50_000_000, flags=private) as fresh:
        np.frombuffer(fresh, np.uint8)[:] = 1
        after = anonymous_bytes()
    assert before is not None and after is not None
    assert 45e6 < after - before < 60e6


def test_a_file_evicted_is_not_in_the_page_cache(tmp_path: Path) -> None:
    kind = subprocess.check_output(["stat", "-f", "-c", "%T", tmp_path], text=True).strip()
    if kind == "tmpfs":
        pytest.skip("files of a tmpfs are nowhere but in the page cache")
    path = tmp_path / "a.tar"
    path.write_bytes(os.urandom(64 * PAGE_BYTES))
    assert resident_share(path) == 1.0
    evict([path])
    assert resident_share(path) < 0.1


def test_a_contestant_s_files_are_the_shards_behind_links_and_its_own(tmp_path: Path) -> None:
    shards, scratch, elsewhere = (tmp_path / name for name in ("shards", "scratch", "elsewhere"))
    for folder in (shards, scratch, elsewhere):
        folder.mkdir()
    (elsewhere / "train-000000.tar").touch()
    for number in range(2):
        (shards / f"train-{number:06d}.tar").symlink_to(elsewhere / "train-000000.tar")
    (shards / "pca.json").touch()
    (scratch / "train.beton").touch()
    settings = FeedSettings(shards=shards, batch_size=1, num_threads=1, seed=0, scratch=scratch)
    assert feed_files(settings) == [elsewhere / "train-000000.tar", scratch / "train.beton"]
