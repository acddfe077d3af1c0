"""The preparation benchmark measures what it says, over the same photographs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.measure.preparation import (
    BARE,
    PreparationContest,
    cpu_seconds,
    run_preparation_contest,
)


def test_every_contestant_does_every_photograph_in_every_round(image_folder: Path) -> None:
    contest = PreparationContest(
        images=image_folder / "val", min_images=16, repeats=5, workers=(1,)
    )
    report = run_preparation_contest(contest)
    assert [result["name"] for result in report["results"]] == [
        "fullfeed-1-worker",
        "opencv-loop",
        "decode+encode",
    ]
    distinct, a_pass = (report["settings"][key] for key in ("distinct_images", "images_per_pass"))
    assert distinct < 16 <= a_pass and a_pass % distinct == 0
    assert not report["not_measured"] and f"fullfeed-1-worker/{BARE}" in report["ratios"]
    assert report["cpu_ratios"].keys() == report["ratios"].keys()
    assert sum(report["stages"].values()) == pytest.approx(1, abs=0.01)
    assert {"decode", "verify", "sums"} <= report["stages"].keys()


def test_the_cpu_time_of_workers_counts_too() -> None:
    spin = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    before = cpu_seconds()
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert cpu_seconds() - before >= 0.5


SPAWNING = """
import multiprocessing
print("imported as", __name__, flush=True)
from tools.measure.preparation import main_left_out

if __name__ == "__main__":
    with main_left_out():
        process = multiprocessing.get_context("spawn").Process(target=print, args=("worker",))
        process.start()
        process.join()
    print(__file__)
"""


def test_workers_do_not_import_the_benchmark_that_measures_them(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SPAWNING)
    command = [sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["imported as __main__", "worker", str(program)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 4, "min_images": 8}, "repeats must be at least 5"),
        ({"repeats": 5, "min_images": 0}, "images must be at least 1"),
    ],
)
def test_what_means_nothing_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PreparationContest(images=tmp_path, **options)
