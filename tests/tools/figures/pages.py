"""A browser for tests of pages, and what every page has to hold in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.figures.browser import Shade, View, find_chromium, open_browser, view

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTHS_PX = (390, 1400)
SMALLEST_PX = 12.0


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A headless chromium; tests that need it skip where there is none."""
    pytest.importorskip("playwright", reason="playwright is not installed (fullfeed[dev])")
    if find_chromium() is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    with open_browser() as opened:
        yield opened


def require_sound(browser: "Browser", page: Path, pictures: Path | None = None) -> View:
    """Shows a page on a phone and on a desk, and asserts that nothing is wrong with it.

    pictures: a folder for what it looks like, light and dark.
    """
    shades: tuple[Shade, ...] = ("light", "dark") if pictures else ("light",)
    found = view(browser, page, widths_px=WIDTHS_PX, shades=shades, pictures=pictures)
    assert found.errors == [] and found.requests == []
    assert found.broken == 0
    assert found.smallest_px >= SMALLEST_PX
    assert found.overflow_px <= 0 and found.outside == []
    return found
