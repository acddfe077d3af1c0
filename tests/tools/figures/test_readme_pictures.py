"""README's pictures: there, named in it, small; drawn by a command from what the demo left."""

import io
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tools.draw_pictures import main
from tools.figures import readme_pictures
from tools.figures.browser import find_chromium
from tools.figures.readme_pictures import MAX_BYTES, PARTS, draw_pictures, small_png

ROOT = Path(__file__).parents[3]
needs_chromium = pytest.mark.skipif(
    find_chromium() is None,
    reason="chromium is not installed; on Debian: apt-get install chromium",
)
PAGE = "<!doctype html><meta charset='utf-8'><title>made</title><body>" + "".join(
    f"<section id='{name}'><div class='{kind}' style='height: 90px'>x</div></section>"
    for name, kind in (("learning", "a"), ("predictions", "photos"), ("neighbours", "similar"))
)


def test_readme_shows_each_picture_and_together_they_are_small() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r'(?:\]\(|src(?:set)?=")(docs/[\w-]+\.png)', text)
    there = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.png"))
    assert sorted(set(shown)) == there
    assert there == sorted(f"docs/{name}.png" for name in ("preview", *(p[0] for p in PARTS)))
    assert sum((ROOT / name).stat().st_size for name in there) <= MAX_BYTES
    for name in there:
        with Image.open(ROOT / name) as image:
            image.load()
            assert image.format == "PNG" and image.width >= 600


@pytest.fixture()
def demo(shard_folder: Path, tmp_path: Path) -> Path:
    """A folder as the demo leaves it, with a page that has the parts only."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/shards").symlink_to(shard_folder)
    (tmp_path / "demo/report.html").write_text(PAGE)
    return tmp_path / "demo"


@needs_chromium
def test_the_command_writes_every_picture(demo: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed (fullfeed[dev])")
    done = CliRunner().invoke(main, [str(demo), "--out", str(tmp_path / "docs")])
    assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "docs").iterdir()}
    assert names == {"preview.png", *(f"{name}.png" for name, *_ in PARTS)}
    assert done.output.count("wrote ") == len(names)


def test_pictures_that_come_out_too_large_are_not_written(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def photograph(browser: object, page: Path, part: str, picture: Path, **how: object) -> None:
        Image.new("RGB", (90, 60)).save(picture)

    monkeypatch.setattr(readme_pictures, "open_browser", nullcontext)
    monkeypatch.setattr(readme_pictures, "snapshot", photograph)
    monkeypatch.setattr(readme_pictures, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="must be at most 1,000 together"):
        draw_pictures(demo, tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_without_the_demo_it_says_how_to_run_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path)])
    assert done.exit_code == 1
    assert f"there is no {tmp_path / 'report.html'}; run: make demo" in done.output


def test_a_small_picture_keeps_its_proportions_and_a_plain_colour() -> None:
    plain = Image.new("RGB", (1000, 500), (30, 90, 200))
    small = Image.open(io.BytesIO(small_png(plain, 400))).convert("RGB")
    assert small.size == (400, 200)
    assert (np.asarray(small) == (30, 90, 200)).all()
