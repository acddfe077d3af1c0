"""Pictures of reports: there is something on them, and matplotlib is asked for only then."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tools import benchmark
from tools.measure.plots import COLOURS, DPI, plot_report

SPREAD = {"median": 200.0, "min": 150.0, "max": 300.0}
REPORT: dict[str, Any] = {
    "results": [{"name": name, "images_per_second": SPREAD} for name in ("step", "real")],
    "machine": {"cpu": "A CPU", "cores": 2, "gpu": None, "date_utc": "2026-11-21T01:25:09"},
    "settings": {"repeats": 5},
}
FED: dict[str, Any] = {
    **REPORT,
    "fed_ratio": {"median": 0.98, "min": 0.9, "max": 1.0},
    "advice": "CPU cores are short",
    "timeline": {"step": [1.0, 2.0], "real": [2.0, 1.0, 3.0]},
}


def drawn(report: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Pixels: (y, x, channel)."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (fullfeed[plot])")
    return np.asarray(Image.open(io.BytesIO(plot_report(report))).convert("RGB"))


def share_of(pixels: np.ndarray[Any, Any], colour: str) -> float:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((pixels == wanted).all(-1).mean())


def test_bars_are_as_long_as_the_speeds() -> None:
    both = drawn(REPORT)
    slower = {**REPORT, "results": [REPORT["results"][0], {
        "name": "real", "images_per_second": {"median": 100.0, "min": 50.0, "max": 300.0}}]}
    assert share_of(both, COLOURS[0]) > 0.1
    ratio = share_of(drawn(slower), COLOURS[0]) / share_of(both, COLOURS[0])
    assert ratio == pytest.approx(0.75, abs=0.03)


def test_what_is_fed_has_a_line_for_each_contestant_below_in_the_colour_of_its_bar() -> None:
    bars, fed = drawn(REPORT), drawn(FED)
    below = fed[bars.shape[0] :]
    assert len(below) > 2 * DPI
    above = fed[: len(fed) - len(below)]
    for colour in COLOURS[:2]:
        assert share_of(above, colour) > 0.05 and 0 < share_of(below, colour) < 0.02


def test_where_matplotlib_is_missing_nothing_is_measured(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.measure.plots.importlib.util.find_spec", lambda name: None)
    arguments = ["loader", "--shards", str(shard_folder), "--plot", str(tmp_path / "a.png")]
    done = CliRunner().invoke(benchmark.main, arguments)
    assert done.exit_code == 1
    assert "pip install 'fullfeed[plot]'" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.txt", "a", "a.pdf"])
def test_a_picture_of_another_kind_is_refused_before_anything_is_measured(
    shard_folder: Path, tmp_path: Path, name: str
) -> None:
    arguments = ["loader", "--shards", str(shard_folder), "--plot", str(tmp_path / name)]
    done = CliRunner().invoke(benchmark.main, arguments)
    assert done.exit_code == 1 and "--plot: a PNG file is drawn; name it a.png" in done.output
    assert list(tmp_path.iterdir()) == []
