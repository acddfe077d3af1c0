"""Results come in the order asked for, errors as themselves, and the thread ends."""

import gc
import threading
import weakref
from typing import Any

import pytest

from pipeline.ahead import Ahead


def fail(text: str) -> int:
    raise ValueError(text)


def test_results_come_in_the_order_asked_for_and_errors_where_they_happened() -> None:
    ahead: Ahead[int] = Ahead("test")
    for number in (3, 1, 2):
        ahead.ask(pow, number, 2)
    ahead.ask(fail, "the fourth")
    ahead.ask(pow, 5, 2)
    assert [ahead.take() for _ in range(3)] == [9, 1, 4]
    with pytest.raises(ValueError, match="the fourth"):
        ahead.take()
    assert ahead.take() == 25
    ahead.close()


def test_calls_are_made_by_another_thread_before_they_are_taken() -> None:
    ahead: Ahead[int] = Ahead("test")
    called = threading.Event()
    ahead.ask(called.set)  # type: ignore[arg-type]  # its None is not taken
    assert called.wait(30)
    ahead.ask(threading.get_ident)
    ahead.take()
    assert ahead.take() != threading.get_ident()
    ahead.close()


def test_it_is_ready_once_the_oldest_call_is_done() -> None:
    ahead: Ahead[bool] = Ahead("test")
    go = threading.Event()
    assert not ahead.is_ready
    ahead.ask(go.wait, 30.0)
    assert not ahead.is_ready
    go.set()
    ahead.ask(go.wait)
    assert ahead.take() and ahead.take()
    assert not ahead.is_ready
    ahead.close()


def test_clear_waits_for_the_call_being_made_and_drops_the_others() -> None:
    ahead: Ahead[None] = Ahead("test")
    begun, go, made = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        assert go.wait(30)
        made.append("slow")

    ahead.ask(slow)
    for _ in range(5):
        ahead.ask(made.append, "dropped")
    assert begun.wait(30)
    threading.Timer(0.1, go.set).start()
    ahead.clear()
    assert made == ["slow"]
    ahead.ask(made.append, "after")
    ahead.take()
    assert made == ["slow", "after"]
    ahead.close()


def test_clear_has_a_last_call_made_and_raises_what_that_raised() -> None:
    ahead: Ahead[None] = Ahead("test")
    made: list[str] = []
    ahead.ask(fail, "forgotten")  # type: ignore[arg-type]  # it returns nothing
    ahead.clear(then=lambda: made.append("last"))
    assert made == ["last"]
    with pytest.raises(ValueError, match="of the last call"):
        ahead.clear(then=lambda: fail("of the last call"))
    ahead.ask(made.append, "after")
    ahead.take()
    assert made == ["last", "after"]
    ahead.close()
    ahead.clear(then=lambda: made.append("of a closed one"))
    assert made == ["last", "after"]


class InterruptedQueue:
    """A queue in whose method Ctrl-C arrives: before or after it did what it is there for."""

    def __init__(self, queue: Any, method: str, *, after: bool) -> None:
        self._queue, self._method, self._after = queue, method, after

    def __getattr__(self, name: str) -> Any:
        if name != self._method:
            return getattr(self._queue, name)

        def interrupted(*arguments: Any, **named: Any) -> None:
            if self._after:
                getattr(self._queue, name)(*arguments, **named)
            raise KeyboardInterrupt

        return interrupted


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("queue", "method"), [("_asked", "put"), ("_done", "get")])
def test_interrupted_anywhere_it_can_be_cleared_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, queue: str, method: str, after: bool
) -> None:
    ahead: Ahead[str] = Ahead("test")
    ahead.ask(str, "old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            ahead, queue, InterruptedQueue(getattr(ahead, queue), method, after=after)
        )
        ahead.ask(str, "older")
        ahead.take()
    clearing = threading.Thread(target=ahead.clear, daemon=True)
    clearing.start()
    clearing.join(30)
    assert not clearing.is_alive()
    ahead.ask(str, "new")
    assert ahead.take() == "new"
    ahead.close()


def test_the_thread_ends_with_close_and_with_an_owner_that_was_only_forgotten() -> None:
    before = threading.active_count()
    ahead: Ahead[None] = Ahead("test")
    ahead.close()
    ahead.close()
    assert threading.active_count() == before

    class Owner:
        def __init__(self) -> None:
            self.ahead: Ahead[None] = Ahead("test")
            self.ahead.ask(self.call)
            self.ahead.take()

        def call(self) -> None:
            """Holds its owner while it is made."""

    owner = Owner()
    thread = next(t for t in threading.enumerate() if t.name == "test")
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    thread.join(30)
    assert gone() is None and not thread.is_alive()
