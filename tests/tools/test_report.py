"""tools/report.py, whole: its page in a real browser, of good runs and of what is left of bad."""

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.conftest import compute_statistics, encoded, photograph, prepare_here
from tests.tools.conftest import train
from tests.tools.figures.pages import browser, require_sound  # noqa: F401  # a fixture
from tests.tools.figures.run_folders import report, write_run
from tools.report import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NASTY = (
    "<img src=x onerror=alert(1)>", "\u202eturned", "été & 日本 \"quoted\"",
    "{{ 7 * 7 }}" + "long" * 30,
)  # fmt: skip

NAMES = (
    "goldfish, Carassius auratus", "日本スピッツ", "كلب", "Ωμέγα", "n02119789",
    "café au lait, crème brûlée and other things with a long name indeed",
)  # fmt: skip


def written(out: Path, arguments: Sequence[str | Path]) -> str:
    """The page that the command writes."""
    words = [str(word) for word in (*arguments, "--out", out, "--device", "cpu")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert f"wrote {out}" in done.output
    return out.read_text(encoding="utf-8")


def missing(text: str) -> list[str]:
    """What a page says it could not show."""
    found = re.search(r'<aside class="remarks".*?</aside>', text, re.DOTALL)
    return re.findall(r"<li>(.*?)</li>", found[0], re.DOTALL) if found else []


def test_a_whole_run_on_one_page(
    browser: "Browser", run_folder: Path, image_folder: Path, tmp_path: Path  # noqa: F811
) -> None:
    page = tmp_path / "report.html"
    text = written(page, [run_folder, "--originals", image_folder])
    assert missing(text) == []
    found = require_sound(browser, page, tmp_path)
    assert found.images == 2 + 8 + 6 * 7 + text.count("taken for <b>") + 1  # and the cut original
    for heading in (
        "Learning", "Feeding", "What the first layer sees", "What it predicts",
        "What it finds alike", "Where it errs", "The images", "Settings and versions",
    ):  # fmt: skip
        assert heading in found.text
    error = json.loads((run_folder / "metrics.jsonl").read_text())["top1_error"]
    assert f"{error:.1%}" in found.text
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert " style=" not in text and "<script" not in text
    assert found.text.index("GPU 1") < found.text.index("GPU 2")


def test_several_runs_are_compared(
    browser: "Browser", run_folder: Path, other_folder: Path, tmp_path: Path  # noqa: F811
) -> None:
    page = tmp_path / "compared.html"
    text = written(page, [run_folder, other_folder])
    found = require_sound(browser, page)
    assert "2 runs compared" in found.text and "Differences" in found.text
    assert re.search(r"network.norm\s+batch\s+response", found.text.replace("\u200b", ""))
    assert text.count("What still decodes of") == 0  # without --originals
    assert text.count("--originals SOURCE") == 1  # said once, of one data set


def test_class_names_are_text_whatever_they_hold(
    browser: "Browser", tmp_path: Path  # noqa: F811
) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in NASTY:
            folder = tmp_path / "source" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(photograph(rng, 80, 80))
                (folder / f"{i}.jpg").write_bytes(encoded(picture))
    shards = tmp_path / "shards"
    prepare_here(tmp_path / "source", shards)
    compute_statistics(shards)
    run = train(shards, tmp_path / "a<b>&run", width=1 / 32)
    page = tmp_path / "nasty.html"
    written(page, [run])
    found = require_sound(browser, page)
    assert all(name in found.text for name in NASTY)
    assert found.title.startswith("a<b>&run")


@pytest.mark.slow
def test_a_run_of_300_classes_is_as_readable_as_one_of_three(
    browser: "Browser", tmp_path: Path  # noqa: F811
) -> None:
    """Names in several scripts, long and short; the page does not grow with their number."""
    rng = np.random.default_rng(0)
    for i in range(300):
        for split, count in (("train", 2), ("val", 1)):
            folder = tmp_path / "source" / split / f"{i:03d} {NAMES[i % len(NAMES)]}"
            folder.mkdir(parents=True)
            for j in range(count):
                picture = Image.fromarray(photograph(rng, 64, 64))
                (folder / f"{j}.jpg").write_bytes(encoded(picture))
    shards = tmp_path / "shards"
    prepare_here(tmp_path / "source", shards)
    compute_statistics(shards)
    page = tmp_path / "report.html"
    text = written(page, [train(shards, tmp_path / "run", width=1 / 32)])
    assert missing(text) == [] and len(text) < 3_000_000
    found = require_sound(browser, page, tmp_path)
    assert found.images == 2 + 8 + 6 * 7 + 12  # as of any run whose mistakes are many
    assert "300 classes" in found.text and "All 300 validation images" in found.text


@pytest.mark.parametrize("num_epochs", [0, 1, 5])
def test_a_run_of_metrics_alone(
    browser: "Browser", tmp_path: Path, num_epochs: int  # noqa: F811
) -> None:
    """No checkpoint and no shards; none, one or several epochs, the last cut off, one all NaN."""
    lines: list[dict[str, object] | str] = [report(i + 1) for i in range(num_epochs)]
    if num_epochs == 5:
        lines[2] = report(3, train_loss=math.nan, val_loss=math.nan, top1_error=None)
        lines[4] = json.dumps(lines[4])[:40]
    run = write_run(tmp_path / "run", lines)
    page = tmp_path / "report.html"
    told = missing(written(page, [run]))
    require_sound(browser, page)
    assert any("Without a checkpoint" in line for line in told)
    assert any("Line 5 of metrics.jsonl is cut off" in line for line in told) == (num_epochs == 5)
    text = page.read_text()
    assert ("No epoch was finished" in text) == (num_epochs == 0)
    assert ("val, epoch 3: not a number" in text) == (num_epochs == 5)
    assert "No kernels can be shown here; the reason is at the top of the page." in text


def test_what_is_gone_is_told_on_the_page(
    browser: "Browser", run_folder: Path, shard_copy: Path, tmp_path: Path  # noqa: F811
) -> None:
    (shard_copy / "val-000000.tar").unlink()
    page = tmp_path / "report.html"
    told = missing(written(page, [run_folder, "--shards", shard_copy, "--originals", tmp_path]))
    require_sound(browser, page)
    assert any("val-000000.tar cannot be read" in line for line in told)
    assert any("originals are not there any more" in line for line in told)
    told = missing(written(page, [run_folder, "--shards", tmp_path / "gone"]))
    assert any("shards are gone" in line for line in told)


def test_a_long_run_with_all_that_is_marked(
    browser: "Browser", tmp_path: Path  # noqa: F811
) -> None:
    rates = [0.01 / 10 ** sum(i > drop for drop in (23, 51, 78)) for i in range(1, 94)]
    lines = [report(i, learning_rate=rate, fed_ratio=0.98) for i, rate in enumerate(rates, 1)]
    run = write_run(tmp_path / "run", lines, preset="kriz2012", epochs=93)
    page = tmp_path / "report.html"
    text = written(page, [run])
    require_sound(browser, page)
    for change in ("rate ÷10 after epoch 23", "lighting off after epoch 68", "conv1 frozen"):
        assert change in text
    assert "Fed ratio" in text and "No ceiling was measured" not in text


def test_mistakes_of_the_command_line_are_told(run_folder: Path, tmp_path: Path) -> None:
    many = []
    for i in range(9):
        many.append(Path(shutil.copytree(run_folder, tmp_path / f"run{i}")))
    for arguments, told in (
        ([tmp_path / "missing"], "is no run folder"),
        ([run_folder, run_folder], "named twice"),
        (many, "at most 8"),
    ):
        done = CliRunner().invoke(main, [str(word) for word in arguments])
        assert done.exit_code == 1 and told in done.output
