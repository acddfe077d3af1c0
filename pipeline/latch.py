"""Work done in parts by threads, waited for by another that Ctrl-C may interrupt anywhere."""

import threading

SIGNAL_SECONDS = 1.0  # a signal that came just before a wait began is seen once it is over


class Latch:
    """Opens when `count` parts are done, and stays open; one thread waits for it.

    Futures, events and conditions will not do in a thread that gets signals: Python may raise
    KeyboardInterrupt within Condition.__enter__, when the lock is taken and nobody gives it back,
    and the threads that are to tell that they are done then wait for ever. Here the waiting thread
    takes no lock that others need.
    """

    def __init__(self, count: int) -> None:
        assert count >= 1
        self._num_left, self._counting = count, threading.Lock()
        self._is_open, self._shut = False, threading.Lock()
        self._shut.acquire()

    @property
    def is_open(self) -> bool:
        """Whether wait() would not wait."""
        return self._is_open

    def count_down(self) -> None:
        """Says that a part is done; never called by a thread that gets signals."""
        with self._counting:
            self._num_left -= 1
            if self._num_left:
                return
        self._is_open = True
        self._shut.release()

    def wait(self) -> None:
        """Returns when all parts are done; interrupted, it may be called again."""
        while not self._is_open:
            self._shut.acquire(timeout=SIGNAL_SECONDS)
