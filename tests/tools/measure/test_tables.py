"""Tables of a page come from its JSON files, and a page that differs from them is noticed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_layout import ROOT
from tools.measure.tables import KINDS, fill_tables
from tools.tables import PAGES

SPEED = {"median": 2568.5, "min": 2489.6, "max": 12889.5}
REPORT: dict[str, Any] = {
    "results": [
        {
            "name": "dali-cpu",
            "seconds": {"median": 1.234, "min": 1.1, "max": 12.5},
            "cpu_seconds": {"median": 1.2, "min": 1.0, "max": 1.5},
            "peak_mb": {"median": 1100.0, "min": 1000.0, "max": 1234.5},
            "images_per_second": SPEED,
            "caller_us_per_image": {"median": 2.52, "min": 2.23, "max": 2.89},
            "anonymous_mb": {"first": 608.1, "last": 1666.6, "min": 599.2, "max": 1701.5},
            "top1_error": {"median": 0.2125, "min": 0.2, "max": 0.3},
            "train_seconds": {"median": 119.6, "min": 100.0, "max": 130.0},
            "epochs": 1068,
            "runs": [{"top1_error": 0.2}, {"top1_error": 0.2125}, {"top1_error": 0.3}],
        }
    ],
    "rates": [{"rate": 0.01, "top1_error": 0.9}, {"rate": 0.1, "top1_error": 0.6125}],
    "ratios": {"dali-cpu/torch": {"median": 2.5126, "min": 2.3022, "max": 3.3594}},
    "stages": {"decode": 0.3796, "resize": 0.6204},
    "fed_ratio": {"median": 0.9712, "min": 0.95, "max": 1.0},
    "ranks": [{"rank": 0, "fed_ratio": {"median": 0.98, "min": 0.97, "max": 0.99}}] * 2,
    "attribution": {"step": 0.9712, "host_decode": 0.0288},
    "advice": "CPU cores are short",
    "machine": {
        "cpu": "A CPU",
        "cores": 2,
        "memory_bytes": 24 * 2**30,
        "gpu": None,
        "python": "3.11.7",
        "versions": {"torch": "2.13.0", "dali": None},
        "date_utc": "2026-11-21T01:25:09+00:00",
        "commit": "0123456789abcdef+changes",
    },
    "settings": {
        "repeats": 5, "preset": "modern", "width": 0.25, "epochs": 90, "batch_size": 1024,
        "backend": "dali-cpu", "images": 15_000_000,
    },
    "expected": {"images_per_second": 8.2, "hours_per_epoch": 0.01, "hours": 0.9},
    "outlook": [
        {
            "devices": devices, "images_per_second": speed, "hours_per_epoch": 0.25,
            "hours": 22.5, "delivered": 9000.0, "fed": fed, "short": short,
        }
        for devices, speed, fed, short in (
            (1, None, None, None), (2, 7000.0, True, "step"), (4, 9000.0, False, "decode"),
        )
    ],
    "memory": {
        "process_bytes": 5 * 10**8, "gpu_bytes": 2 * 10**9, "shards_bytes": 10**7,
        "shards_fit": True, "free_bytes": 2 * 10**10, "resident_bytes": 5 * 10**7,
    },
    "eigenvalues": [10000.0, 400.0, 121.0],
    "num_pixels": 65536,
}
TABLES = {
    "speeds": "| dali-cpu | 2,568 | 2,490–12,890 |",
    "ratios": "| dali-cpu ÷ torch | 2.51 | 2.30–3.36 |",
    "stages": "| decode | resize |\n| --- | --: |\n| 38% | 62% |",
    "errors": "| dali-cpu | 21.2% | 20.0%–30.0% | 20.0%, 21.2%, 30.0% | 1,068 | 120 s |",
    "rates": "| torchvision AlexNet, seed 0, rate | 0.01 | 0.1 |\n| --- | --: | --: |\n"
    "| top-1 error | 90.0% | 61.3% |",
    "fed": "| rank 0 | 0.980 | 0.970–0.990 |\n| rank 0 | 0.980 | 0.970–0.990 |\n"
    "| in all | 0.971 | 0.950–1.000 |\n\nOf modern at width 0.25, 1,024 images a step, fed "
    "by dali-cpu. Time of a step with real data: step 97.1%, host decode 2.9%. In its own words: "
    "CPU cores are short.",
    "costs": "| CPU of the caller, µs an image, 1,024 a batch | median | least–most | "
    "MB kept after the first pass | after the last of 5 | least–most |\n"
    "| --- | --: | --: | --: | --: | --: |\n"
    "| dali-cpu | 2.5 | 2.2–2.9 | 608 | 1,667 | 599–1,702 |",
    "scale": "| 15,000,000 images | seconds: median | least–most | CPU seconds: median | "
    "least–most | peak of memory |\n| --- | --: | --: | --: | --: | --: |\n"
    "| dali-cpu | 1.23 | 1.10–12.50 | 1.20 | 1.00–1.50 | 1,234 MB |",
    "preflight": "| modern, width 0.25 | images/s | an epoch | 90 epochs | delivered images/s | "
    "fed |\n| --- | --: | --: | --: | --: | --: |\n| this machine | 8.2 | 36.0 s | 54.0 min |  |  "
    "|\n| 1 GPU | ? | ? | ? | 9,000 | no GPU |\n"
    "| 2 GPUs | 7,000 | 15.0 min | 22.5 h | 9,000 | yes |\n"
    "| 4 GPUs | 9,000 | 15.0 min | 22.5 h | 9,000 | no: decode |\n\nMemory: 500 MB a process; "
    "2.0 GB in use on its GPU; shards of 10 MB fit in 20.0 GB free; decoded images would take "
    "50 MB (--resident). In its own words: CPU cores are short.",
    "lighting": "| 65,536 pixels | 100.0 | 20.0 | 11.0 |\n"
    "| ImageNet, 2012 | 121.8 | 37.1 | 19.7 |",
    "machine": "*A CPU, 2 cores, 24 GiB, GPU: none; Python 3.11.7, torch 2.13.0; 2026-11-21, "
    "commit 012345678 with changes, 5 rounds.*",
}


def page(kind: str, table: str = "old") -> str:
    return f"before\n<!-- table: r.json {kind} -->\n{table}\n<!-- end of table -->\nafter\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "r.json").write_text(json.dumps(REPORT))
    return tmp_path


def test_every_kind_is_tried_here() -> None:
    assert list(TABLES) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_holds_the_numbers_of_its_file_and_the_rest_of_the_page_stays(
    root: Path, kind: str
) -> None:
    filled = fill_tables(page(kind), root)
    assert TABLES[kind] in filled and "old" not in filled
    assert filled.startswith("before\n<!-- table: r.json ") and filled.endswith("-->\nafter\n")
    assert fill_tables(filled, root) == filled


@pytest.mark.parametrize("report", [{"rates": []}, {}])
def test_without_a_search_for_rates_the_page_says_so(report: dict[str, Any], root: Path) -> None:
    (root / "r.json").write_text(json.dumps(report))
    assert "no learning rate of torchvision's recipe was" in fill_tables(page("rates"), root)


def test_a_table_of_a_missing_file_says_that_it_was_not_measured(root: Path) -> None:
    """And a page that has numbers differs from it: they are no longer those of a file."""
    filled = fill_tables(page("speeds"), root)
    (root / "r.json").unlink()
    without = fill_tables(filled, root)
    assert without == page("speeds", "*Not measured yet: there is no r.json.*") != filled


def test_each_of_several_tables_is_filled(root: Path) -> None:
    filled = fill_tables(page("speeds") + page("ratios"), root)
    assert TABLES["speeds"] in filled and TABLES["ratios"] in filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (page("speeds").replace("r.json", "folder"), "folder cannot be read: Is a directory"),
        (page("heights"), "no table of kind 'heights'; there are: speeds"),
        (page("speeds").replace("<!-- end of table -->", ""), "has no <!-- end of table -->"),
        (page("speeds").replace("<!-- end of table -->", "") + page("ratios"), "of its own"),
        (page("speeds").replace("r.json", "other.json"), "is not a report of tools/benchmark.py"),
    ],
)
def test_a_page_that_cannot_be_filled_says_why(root: Path, text: str, message: str) -> None:
    (root / "other.json").write_text('{"results": [{}]}')
    (root / "folder").mkdir()
    with pytest.raises(ValueError, match=message):
        fill_tables(text, root)


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_of_this_project_are_those_of_its_measurements(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert fill_tables(text, ROOT) == text


def test_ratios_of_cpu_time_stand_beside_those_of_the_wall_clock() -> None:
    second = {"a/b": {"median": 1.5, "min": 1.0, "max": 2.0}}
    of_cpu = {"dali-cpu/torch": {"median": 2.25, "min": 2.0, "max": 2.5}}
    report = {**REPORT, "ratios": {**REPORT["ratios"], **second}, "cpu_ratios": of_cpu}
    assert KINDS["ratios"](report).splitlines() == [
        "| ratio, round by round | wall clock: median | least–most | CPU time: median | "
        "least–most |",
        "| --- | --: | --: | --: | --: |",
        "| dali-cpu ÷ torch | 2.51 | 2.30–3.36 | 2.25 | 2.00–2.50 |",
        "| a ÷ b | 1.50 | 1.00–2.00 |  |  |",
    ]


def test_what_was_measured_with_a_cold_page_cache_says_so() -> None:
    cold = {**REPORT, "settings": {**REPORT["settings"], "cold": True}}
    assert KINDS["ratios"](cold).startswith("| ratio, round by round, page cache cold |")
    assert "cold" not in KINDS["ratios"](REPORT)
