"""Ctrl-C, SIGTERM and SIGUSR1 as a question that is answered between two steps."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_request(
    *, quiet: bool = False, to_the_end: bool = False
) -> Iterator[Callable[[], bool]]:
    """Within it a signal only asks: the function given says whether one came.

    A second SIGINT interrupts at once, as KeyboardInterrupt: somebody pressed Ctrl-C twice.
    SIGTERM and SIGUSR1 ask, however often: a scheduler sends one ahead of the other, and the
    kernel tells a rank of its launcher's death once for each thread of the launcher that held it.
    quiet: says nothing. to_the_end: signals go on to do no more than that for what is left of the
    process: a rank that is ended because another crashed is first to say what it saw of that.
    """
    asked, pressed = threading.Event(), threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if pressed.is_set():
                raise KeyboardInterrupt
            pressed.set()
        if not (asked.is_set() or quiet):
            told = "\nstopping after this step; press Ctrl-C twice to stop at once"
            if number == signal.SIGINT:
                told = "\nstopping after this step; once more to stop at once"
            print(told, file=sys.stderr, flush=True)
        asked.set()

    old = {number: signal.signal(number, ask) for number in ASKING}
    try:
        yield asked.is_set
    finally:
        for number, handler in old.items():
            if not to_the_end:
                signal.signal(number, handler)
