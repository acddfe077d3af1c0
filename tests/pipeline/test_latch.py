"""A latch opens with the last part, and an interrupted wait harms nobody."""

import threading
from typing import Any

import pytest

from pipeline.latch import Latch


@pytest.mark.parametrize("count", [1, 2, 7])
def test_it_opens_with_the_last_part_and_stays_open(count: int) -> None:
    latch = Latch(count)
    for _ in range(count):
        assert not latch.is_open
        latch.count_down()
    assert latch.is_open
    latch.wait()
    latch.wait()


def test_a_wait_ends_when_other_threads_have_done_their_parts() -> None:
    latch, done = Latch(20), []

    def work(number: int) -> None:
        done.append(number)
        latch.count_down()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    latch.wait()
    assert sorted(done) == list(range(20))
    for thread in threads:
        thread.join()


class InterruptedLock:
    """A lock in whose acquire Ctrl-C arrives: before or after it was taken."""

    def __init__(self, lock: Any, *, after: bool) -> None:
        self._lock, self._after = lock, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    def acquire(self, timeout: float) -> bool:
        if self._after:
            self._lock.acquire(timeout=timeout)
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
def test_a_wait_that_was_interrupted_can_be_begun_again(
    monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    latch = Latch(1)
    if after:  # the part is done between the look and the wait
        monkeypatch.setattr("pipeline.latch.SIGNAL_SECONDS", 30.0)
        threading.Timer(0.1, latch.count_down).start()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(latch, "_shut", InterruptedLock(latch._shut, after=after))
        latch.wait()
    if not after:
        assert not latch.is_open
        latch.count_down()
    latch.wait()
    assert latch.is_open
