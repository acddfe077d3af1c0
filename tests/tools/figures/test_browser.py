"""What is said of a page is what a browser found: nothing wrong goes unseen."""

from pathlib import Path

import pytest
from PIL import Image

from tests.tools.figures.pages import browser  # noqa: F401  # a fixture
from tools.figures.browser import (
    View,
    find_chromium,
    open_browser,
    snapshot,
    take_picture,
    view,
)

PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<title>made</title><style>body {{ margin: 0; font: 16px sans-serif }}</style><body>{body}</body>"""
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwAD"
    "hgGAWjR9awAAAABJRU5ErkJggg=="
)


def shown(browser: object, folder: Path, body: str) -> View:  # noqa: F811
    (folder / "page.html").write_text(PAGE.format(body=body))
    return view(browser, folder / "page.html", widths_px=[400])  # type: ignore[arg-type]


def test_a_plain_page_has_nothing_wrong(browser: object, tmp_path: Path) -> None:  # noqa: F811
    found = shown(browser, tmp_path, f'<p>text</p><img src="{PIXEL}" alt="">')
    assert found == View(
        errors=[], requests=[], smallest_px=16, broken=0, images=1, overflow_px=0, outside=[],
        title="made", text="text",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("<script>undefined_name()</script>", "errors"),
        ("<script>console.error('x')</script>", "errors"),
        ('<img src="http://localhost:9/x.png" alt="">', "requests"),
        ('<img src="data:image/png;base64,AAAA" alt="">', "broken"),
        ("<p>text</p><div style='width: 500px'>wide</div>", "outside"),
        ("<div style='width: 500px; height: 9px'></div>", "overflow_px"),
    ],
)
def test_what_is_wrong_is_seen(
    browser: object, tmp_path: Path, body: str, wrong: str  # noqa: F811
) -> None:
    assert getattr(shown(browser, tmp_path, f"<p>text</p>{body}"), wrong)


def test_text_of_a_drawing_measures_as_it_appears(
    browser: object, tmp_path: Path  # noqa: F811
) -> None:
    drawing = (
        "<svg viewBox='0 0 800 100' width='400'><text y='20' font-size='20'>small</text></svg>"
    )
    assert shown(browser, tmp_path, f"<p>text</p>{drawing}").smallest_px == 10


def test_a_picture_of_the_page_is_as_wide_as_the_window(
    browser: object, tmp_path: Path  # noqa: F811
) -> None:
    (tmp_path / "page.html").write_text(PAGE.format(body="<div style='height: 3000px'>x</div>"))
    for name, height in (("whole", None), ("top", 500)):
        (tmp_path / name).mkdir()
        view(
            browser, tmp_path / "page.html", widths_px=[400, 300],  # type: ignore[arg-type]
            shades=["light", "dark"], pictures=tmp_path / name, height_px=height,
        )  # fmt: skip
        for picture in (tmp_path / name).iterdir():
            width = int(picture.stem.split("-")[1])
            with Image.open(picture) as image:
                assert image.size == (width, height or 3000)
        assert len(list((tmp_path / name).iterdir())) == 4


@pytest.mark.parametrize(
    ("failures", "says", "raises"),
    [(4, "Unable to capture screenshot", False), (5, "Unable to capture screenshot", True),
     (1, "Target closed", True)],
)  # fmt: skip
def test_a_picture_that_chromium_does_not_give_is_asked_for_again(
    failures: int, says: str, raises: bool
) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    asked: list[int] = []

    def take() -> None:
        asked.append(len(asked))
        if len(asked) <= failures:
            raise playwright.Error(f"Protocol error: {says}")

    if raises:
        with pytest.raises(playwright.Error, match=says):
            take_picture(take)
    else:
        take_picture(take)
    assert len(asked) == (failures if raises else failures + 1)


def test_a_picture_of_a_part_is_that_element_alone(
    browser: object, tmp_path: Path  # noqa: F811
) -> None:
    part = "<p>text</p><div id='part' style='width: 200px; height: 70px; background: #08f'></div>"
    (tmp_path / "page.html").write_text(PAGE.format(body=part))
    page, picture = tmp_path / "page.html", tmp_path / "part.png"
    snapshot(browser, page, "#part", picture, width_px=400, shade="dark")  # type: ignore[arg-type]
    with Image.open(picture) as image:
        assert image.size == (200, 70)
        assert image.convert("RGB").getcolors() == [(200 * 70, (0, 136, 255))]
    with pytest.raises(ValueError, match="has no #other"):
        snapshot(
            browser, page, "#other", picture, width_px=400, shade="light"  # type: ignore[arg-type]
        )


def test_without_a_browser_it_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_chromium() is None
    with pytest.raises(ValueError, match="apt-get install chromium"), open_browser():
        pass
