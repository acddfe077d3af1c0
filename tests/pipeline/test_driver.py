"""A driven backend gives what the backend gives, in its order, from another thread."""

import threading
from typing import Any

import pytest

from pipeline.driver import Driver


class Echo:
    """A backend whose pixels are what was submitted; "bad" cannot be rendered."""

    still_reading = None

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.waiting: list[Any] = []

    def prepare(self, work: Any) -> Any:
        return work

    def submit(self, prepared: Any) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append(f"submit {prepared}")
        self.waiting.append(prepared)

    def take(self) -> Any:
        self.threads.add(threading.get_ident())
        step = self.waiting.pop(0)
        self.calls.append(f"take {step}")
        if step == "bad":
            raise RuntimeError("cannot be rendered")
        return step

    def clear(self) -> None:
        self.threads.add(threading.get_ident())
        self.waiting.clear()

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append("close")


def test_steps_come_in_order_and_the_caller_s_thread_renders_none() -> None:
    echo = Echo()
    driver = Driver(echo)
    driver.submit(driver.prepare("a"))  # type: ignore[arg-type]
    driver.submit("b")
    driver.submit("c")
    found = [driver.take(), driver.take()]
    driver.submit("d")
    found += [driver.take(), driver.take()]
    driver.clear()
    driver.close()
    driver.close()
    assert found == ["a", "b", "c", "d"]
    assert echo.calls[-1] == "close" and echo.calls.count("close") == 1
    assert len(echo.threads) == 1 and threading.get_ident() not in echo.threads


def test_what_the_backend_raises_is_raised_and_after_clear_it_goes_on() -> None:
    driver = Driver(Echo())
    for step in ("a", "bad", "c"):
        driver.submit(step)
    assert driver.take() == "a"
    with pytest.raises(RuntimeError, match="cannot be rendered"):
        driver.take()
    driver.clear()
    driver.submit("e")
    assert driver.take() == "e"
    driver.close()


def test_clear_forgets_what_was_submitted_and_what_was_being_taken() -> None:
    driver = Driver(Echo())
    for round_number in range(5):
        for step in range(3):
            driver.submit(f"{round_number}.{step}")
        assert driver.take() == f"{round_number}.0"
        driver.clear()
    driver.close()
