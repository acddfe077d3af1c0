"""Progress: one bar on a terminal, now and then a plain line elsewhere."""

import sys

import pytest

from pipeline.tally import Tally
from tools import preparation
from tools.progress import LINE_SECONDS, Progress


class Clock:
    """Stands for time.monotonic."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that both modules see."""
    clock = Clock()
    for module in ("tools.progress", "tools.preparation"):
        monkeypatch.setattr(f"{module}.time", clock)
    return clock


def test_plain_lines_say_how_much_how_fast_and_how_long_still(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("prepare", total=4000, unit="image") as progress:
        clock.now += 20
        progress.show(1000, "7.5 MB/s")
    expected = "prepare: 1,000 of 4,000 images, 50 images/s, 60 s left, 7.5 MB/s\n"
    assert capsys.readouterr().err == expected


def test_plain_lines_are_some_time_apart(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("prepare", total=100, unit="image")
    for done in range(1, 61):  # one a second
        clock.now += 1
        progress.show(done)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 60 // LINE_SECONDS
    assert lines[1] == "prepare: 30 of 100 images, 1 images/s, 70 s left"


def test_nothing_done_is_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("prepare", total=100, unit="image")
    clock.now += 60
    progress.show(0)
    assert capsys.readouterr().err == ""


def test_a_tally_shows_megabytes_a_second_and_the_quarantined(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    show = preparation._shown_by(Progress("prepare", total=4000, unit="image"))
    clock.now += 20
    show(Tally(images=1000, quarantined=3, source_bytes=150_000_000))
    assert capsys.readouterr().err.endswith("60 s left, 7.5 MB/s, 3 quarantined\n")


def test_a_terminal_has_a_bar_and_no_lines(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("prepare", total=200, unit="image") as progress:
        clock.now += 60
        progress.show(50, "a note")
        progress.show(200, "7.5 MB/s")
    text = capsys.readouterr().err
    assert "prepare: 100%" in text and "200/200" in text and "7.5 MB/s" in text
    assert "images/s" not in text and "\r" in text
