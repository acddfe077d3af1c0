"""What a step gives back to the heap, the next one finds there."""

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.heap import M_MMAP_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

ROOT = Path(__file__).parents[2]
FAULTS = """
import resource, sys
import numpy as np
from trainer.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(num_bytes, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

num_bytes = 100_000_000
anew = faults()
done = keep_freed_memory()
faults()
print(int(done), anew, faults())
"""


def test_pages_are_fetched_once() -> None:
    run = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    done, anew, kept = (int(number) for number in run.stdout.split())
    if not done:
        pytest.skip("this C library has no mallopt")
    assert 0 <= 4 * kept < anew


class Library:
    """Stands in for a C library: refuses the options given, and notes what it was asked."""

    def __init__(self, *refused: int) -> None:
        self._refused, self.asked = refused, list[int]()

    def mallopt(self, option: int, value: int) -> int:
        assert 0 <= value < 2**31
        self.asked.append(option)
        return int(option not in self._refused)


def test_a_glibc_that_refuses_the_threshold_maps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = Library(), Library(M_MMAP_THRESHOLD)
    for library, expected in ((new, []), (old, [M_MMAP_MAX])):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, library=library: library)
        assert keep_freed_memory()
        assert library.asked == [M_MMAP_THRESHOLD, *expected, M_TRIM_THRESHOLD]


@pytest.mark.parametrize("error", [AttributeError, OSError])
def test_another_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    def no_library(name: None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert not keep_freed_memory()
