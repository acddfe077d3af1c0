"""Calls made ahead by a thread: asked for now, their results taken later, in the same order."""

import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from pipeline.latch import SIGNAL_SECONDS

Result = TypeVar("Result")


class Ahead(Generic[Result]):
    """One thread that makes the calls; asking costs a tenth of what an executor's submit does.

    ask(call, …) … take(): the oldest call's result, or the error it raised. The thread ends with
    close(), or with this object.
    """

    def __init__(self, name: str) -> None:
        self._asked: SimpleQueue[Any] = SimpleQueue()
        self._done: SimpleQueue[Any] = SimpleQueue()
        # The thread holds the queues only: whoever owns this object can be collected unclosed.
        self._thread = threading.Thread(
            target=_make_calls, args=(self._asked, self._done), name=name, daemon=True
        )
        self._thread.start()
        self._end = weakref.finalize(self, self._asked.put, None)

    @property
    def is_ready(self) -> bool:
        """Whether take() would not wait."""
        return not self._done.empty()

    def ask(self, call: Callable[..., Result], *arguments: object) -> None:
        """Has the call made, after all that were asked for before it."""
        self._asked.put((call, arguments))

    def take(self) -> Result:
        """The result of the oldest call not taken yet; waits for it, raises what it raised."""
        result, error = self._outcome()
        if error is not None:
            raise error
        taken: Result = result
        return taken

    def clear(self, then: Callable[[], object] = lambda: None) -> None:
        """Forgets all that was asked for, and has a last call made; raises what that raised.

        No call is being made when this returns. Interrupted (Ctrl-C), it may be called again.
        """
        # Not is_alive(): interrupted, Python 3.11 and 3.12 take a thread that runs for ended.
        if not self._end.alive:
            return  # closed
        with suppress(Empty):
            while True:
                self._asked.get_nowait()
        # Not by counting: an interrupt (Ctrl-C) in ask() or take() would leave the count wrong.
        mark = object()
        self._asked.put((then, ()))
        self._asked.put((lambda: mark, ()))
        last_error: BaseException | None = None
        while (outcome := self._outcome())[0] is not mark:
            last_error = outcome[1]
        if last_error is not None:
            raise last_error

    def close(self) -> None:
        """Ends the thread; closing twice is harmless."""
        self.clear()
        self._end()
        self._thread.join()

    def _outcome(self) -> tuple[Any, BaseException | None]:
        """Of the oldest call not taken yet: its result, or what it raised; waits for it."""
        while True:
            with suppress(Empty):
                outcome: tuple[Any, BaseException | None] = self._done.get(timeout=SIGNAL_SECONDS)
                return outcome


def _make_calls(asked: SimpleQueue[Any], done: SimpleQueue[Any]) -> None:
    while (job := asked.get()) is not None:
        call, arguments = job
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = call(*arguments), None
        except BaseException as error:  # raised again by take()
            outcome = None, error
        done.put(outcome)
        del job, call, arguments, outcome  # hold nothing while waiting for the next
