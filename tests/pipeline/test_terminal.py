"""A bar is drawn on every terminal, also on one that was given no size."""

import sys

import pytest
from tqdm import tqdm

from pipeline.terminal import bar_options
from tests.terminals import on_terminal


@pytest.mark.parametrize(("rows", "columns", "width"), [(0, 0, 79), (24, 80, 79), (9, 50, 49)])
def test_a_bar_is_as_wide_as_its_terminal_or_as_79_columns(
    rows: int, columns: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw() -> None:
        with tqdm(total=3, file=sys.stderr, **bar_options()) as bar:
            bar.update(3)

    lines = on_terminal(rows, columns, draw, monkeypatch)
    assert [len(line) for line in lines[:1]] == [width] and "0/3" in lines[0]


def test_off_a_terminal_a_bar_is_no_wider(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=3, file=sys.stderr, **bar_options()) as bar:
        bar.update(3)
    assert {len(line) for line in capsys.readouterr().err.split("\r")[1:2]} == {79}
