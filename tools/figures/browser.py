"""A page in a real browser: what it asks for, what it complains of, how it looks and measures.

Needs playwright (fullfeed[dev]) and a chromium that is installed on the machine.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Shade = Literal["light", "dark"]
MOST_TRIES = 5  # of a picture: chromium has none to give, now and then, on a busy machine
LONGEST_MS = 180_000  # for any one thing asked of a browser, on a machine that is busy too
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# The smallest text in px as it appears, drawings scaled; pictures without pixels; wider than the
# window by so many px; what sticks out of it.
MEASURE = """() => {
  const sizes = [], outside = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const parent = texts.currentNode.parentElement;
    const box = parent.getBoundingClientRect();
    if (!texts.currentNode.data.trim() || !box.width || parent.closest("title")) continue;
    const drawing = parent.closest("svg");
    const scale = drawing ? drawing.getScreenCTM().a : 1;
    sizes.push(parseFloat(getComputedStyle(parent).fontSize) * scale);
    const scrolls = parent.closest(".scroll");
    if (!scrolls && box.right > innerWidth + 1) outside.push(texts.currentNode.data.trim());
  }
  return {
    smallest_px: Math.min(...sizes),
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    images: document.images.length,
    overflow_px: document.documentElement.scrollWidth - innerWidth,
    outside: outside,
  };
}"""


@dataclass(frozen=True, kw_only=True)
class View:
    """A page as windows of several widths showed it: of each number the worst."""

    errors: list[str]  # of the console and of scripts
    requests: list[str]  # for anything but the page itself and data URLs
    smallest_px: float  # text as it appears
    broken: int  # pictures that do not decode
    images: int
    overflow_px: float  # wider than the window
    outside: list[str]  # texts that end past its right edge
    title: str
    text: str


def find_chromium() -> str | None:
    """Where a chromium is installed; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator["Browser"]:
    """A headless chromium; ValueError where that or playwright is not installed."""
    path = find_chromium()
    if path is None:
        raise ValueError("chromium is not installed; on Debian: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ValueError("playwright is not installed; pip install 'fullfeed[dev]'") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def view(
    browser: "Browser", file: Path, *, widths_px: Sequence[int],
    shades: Sequence[Shade] = ("light",), pictures: Path | None = None,
    height_px: int | None = None,
) -> View:  # fmt: skip
    """Shows a page in windows of these widths.

    pictures: a folder for a PNG of each, NAME-WIDTH-SHADE.png, of the page's top height_px or of
    all of it.
    """
    errors: list[str] = []
    requests: list[str] = []
    own = file.absolute().as_uri()
    page = browser.new_page()
    page.set_default_timeout(LONGEST_MS)
    try:
        page.on("console", lambda told: errors.append(told.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(own)
        found: list[dict[str, Any]] = []
        for width in widths_px:
            page.set_viewport_size({"width": width, "height": height_px or 900})
            found.append(page.evaluate(MEASURE))
            for shade in shades:
                page.emulate_media(color_scheme=shade)
                if pictures is not None:
                    name = f"{file.stem}-{width}-{shade}.png"
                    path, whole = pictures / name, height_px is None
                    take_picture(partial(page.screenshot, path=path, full_page=whole))
        return View(
            errors=errors,
            requests=[url for url in requests if url != own and not url.startswith("data:")],
            smallest_px=min(one["smallest_px"] for one in found),
            broken=max(one["broken"] for one in found),
            images=found[0]["images"],
            overflow_px=max(one["overflow_px"] for one in found),
            outside=[text for one in found for text in one["outside"]],
            title=page.title(),
            text=page.inner_text("body"),
        )
    finally:
        page.close()


def snapshot(
    browser: "Browser", file: Path, part: str, picture: Path, *, width_px: int, shade: Shade
) -> None:
    """A PNG of one element of a page, by its CSS selector, in a window of that width.

    ValueError where the page has no such element.
    """
    page = browser.new_page(viewport={"width": width_px, "height": 900}, color_scheme=shade)
    page.set_default_timeout(LONGEST_MS)
    try:
        page.goto(file.absolute().as_uri())
        found = page.query_selector(part)
        if found is None:
            raise ValueError(f"{file} has no {part}")
        take_picture(partial(found.screenshot, path=picture))
    finally:
        page.close()


def take_picture(take: Callable[[], object]) -> None:
    """Calls a screenshot's function until there is one; playwright's Error as it raises it."""
    from playwright.sync_api import Error

    for tries in range(1, MOST_TRIES + 1):
        try:
            take()
            return
        except Error as error:
            if tries == MOST_TRIES or "Unable to capture screenshot" not in str(error):
                raise
