"""A profiler sees names; nobody else pays for them."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from pipeline import ranges
from pipeline.handover import Handover
from pipeline.reader import Reader
from pipeline.reference import NumpyBackend


def double(number: int) -> int:
    return 2 * number


def test_without_nvtx_or_a_profiler_a_function_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ranges.shown("read")(double) is double
    monkeypatch.setattr(ranges, "annotate", None)
    assert ranges.shown("read")(double) is double


@pytest.mark.parametrize(
    "method", [Reader.take, NumpyBackend.submit, NumpyBackend.take, Handover.pixels]
)
def test_the_loaders_own_functions_are_not_wrapped(method: Callable[..., Any]) -> None:
    assert not hasattr(method, "__wrapped__")


def test_a_profiler_is_told_the_name_around_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def annotate(message: str, domain: str) -> Callable[..., Any]:
        """What nvtx.annotate does under a profiler."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def inner(*arguments: Any) -> Any:
                told.append(f"{domain}: {message} begins")
                result = function(*arguments)
                told.append(f"{message} ends with {result}")
                return result

            return inner

        return decorate

    monkeypatch.setattr(ranges, "annotate", annotate)
    assert ranges.shown("read")(double)(21) == 42
    assert told == ["fullfeed: read begins", "read ends with 42"]
