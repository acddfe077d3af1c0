"""Opening, ordering and planning are measured by their own clocks, in fresh processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.order import Window
from tools.benchmark import main
from tools.measure import scale
from tools.measure.plots import plot_report
from tools.measure.scale import (
    OPEN,
    ORDER,
    PLAN,
    WINDOWED,
    ScaleContest,
    run_scale_contest,
    scale_table,
)
from tools.measure.scale_passes import BATCH_SIZE, Stretch, open_and_order, plan_all
from tools.measure.simulated import simulate_shards
from tools.measure.tables import KINDS


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has the n-th process take n seconds, half of the CPU, and n MB; what each was to do."""
    calls: list[str] = []

    def give(function: Callable[..., Any], *arguments: Any) -> Any:
        calls.append(" ".join([function.__name__, *map(str, arguments[1:])]))
        n = len(calls)
        stretch = Stretch(seconds=n, cpu_seconds=n / 2, peak_bytes=n * 10**6)
        return stretch if function is plan_all else (stretch, stretch)

    monkeypatch.setattr(scale, "in_fresh_process", give)
    return calls


def test_a_round_is_three_processes_and_the_first_round_does_not_count(
    numbered: list[str],
) -> None:
    report = run_scale_contest(ScaleContest(num_images=3_000, repeats=5))
    assert numbered == ["open_and_order all", "open_and_order 16", "plan_all"] * 6
    assert [result["name"] for result in report["results"]] == [OPEN, ORDER, WINDOWED, PLAN]
    by_name = {result["name"]: result for result in report["results"]}
    # Of rounds 1 to 5 the global order is processes 4, 7, 10, 13 and 16.
    assert by_name[OPEN]["seconds"] == {"median": 10.0, "min": 4, "max": 16}
    assert by_name[ORDER]["cpu_seconds"] == {"median": 5.0, "min": 2.0, "max": 8.0}
    assert by_name[WINDOWED]["peak_mb"] == {"median": 11.0, "min": 5.0, "max": 17.0}
    assert by_name[PLAN]["images_per_second"] == {"median": 250.0, "min": 166.7, "max": 500.0}
    assert report["settings"]["images"] == 3_000 and report["settings"]["repeats"] == 5
    assert json.loads(json.dumps(report)) == report
    assert scale_table(report).splitlines()[1].split()[-5:] == ["10.00", "4.00", "16.00", "5.00",
                                                                "16"]  # fmt: skip
    assert KINDS["scale"](report).splitlines()[2] == (
        "| opening a loader | 10.00 | 4.00–16.00 | 5.00 | 2.00–8.00 | 16 MB |"
    )
    assert plot_report(report).startswith(b"\x89PNG")


def test_what_is_measured_is_done(tmp_path: Path) -> None:
    simulate_shards(tmp_path, 2_100)
    windows: tuple[Window, ...] = ("all", 1)
    for window in windows:
        opened, ordered = open_and_order(tmp_path, window)
        assert opened.seconds > 0 and ordered.seconds > 0
        assert (opened.peak_bytes or 0) <= (ordered.peak_bytes or 0)
    assert plan_all(2_100).seconds > 0


def test_a_process_that_is_ended_is_told_and_not_waited_for() -> None:
    with pytest.raises(ValueError, match="ended from outside.*fewer --images"):
        scale.in_fresh_process(os._exit, 9)


def test_a_planner_is_measured_without_what_it_never_imports() -> None:
    """PyTorch alone would be a quarter of a gigabyte of its peak."""
    program = "import sys, tools.measure.scale_passes; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--repeats", "4"], "repeats must be at least 5, not 4"),
        (["--images", str(BATCH_SIZE - 1)], "images must be at least 64, not 63"),
    ],
)
def test_what_means_nothing_is_a_usage_error(options: list[str], told: str) -> None:
    done = CliRunner().invoke(main, ["scale", *options])
    assert done.exit_code == 2 and told in done.output
