"""The JSON form that every benchmark keeps, frozen; and the table made of it."""

import json
from pathlib import Path

import pytest

from tools.measure.report import build_report
from tools.measure.rounds import Outcome, Pass
from tools.measure.table import Paths, publish, report_table

OUTCOME = Outcome(
    passes={
        "dali-cpu": [
            Pass(
                num_images=n, seconds=2.0, caller_seconds=n * 3e-6, anonymous_bytes=n * 1_000_000
            )
            for n in (600, 800, 700, 640, 660)
        ],
        "torch": [Pass(num_images=n, seconds=1.0) for n in (100, 200, 100, 100, 110)],
    },
    failed={"ffcv": "ImportError: broken"},
)
REPORT = build_report(
    OUTCOME,
    [("dali-cpu", "torch"), ("dali-cpu", "ffcv")],
    absent={"webdataset": "not installed"},
    machine={"cpu": "some", "cores": 2},
    settings={"threads": 2},
)


def test_the_json_form_is_frozen() -> None:
    assert json.loads(json.dumps(REPORT)) == {
        "results": [
            {
                "name": "dali-cpu",
                "images_per_second": {"median": 330.0, "min": 300.0, "max": 400.0},
                "caller_us_per_image": {"median": 3.0, "min": 3.0, "max": 3.0},
                "anonymous_mb": {"first": 600.0, "last": 660.0, "min": 600.0, "max": 800.0},
            },
            {
                "name": "torch",
                "images_per_second": {"median": 100.0, "min": 100.0, "max": 200.0},
            },
        ],
        "ratios": {"dali-cpu/torch": {"median": 3.0, "min": 2.0, "max": 3.5}},
        "machine": {"cpu": "some", "cores": 2},
        "settings": {"threads": 2},
        "not_measured": {"webdataset": "not installed", "ffcv": "ImportError: broken"},
    }


def test_a_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    outcome = Outcome(
        passes={
            "a": [Pass(num_images=n, seconds=1.0) for n in (10, 20, 90)],
            "b": [Pass(num_images=n, seconds=1.0) for n in (10, 10, 30)],
        }
    )
    report = build_report(outcome, [("a", "b")], absent={}, machine={}, settings={})
    assert report["ratios"]["a/b"] == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_ratios_of_cpu_time_are_those_of_what_every_process_spent() -> None:
    outcome = Outcome(
        passes={
            "a": [Pass(num_images=100, seconds=s, cpu_seconds=2.0) for s in (1.0, 3.0, 9.0)],
            "b": [Pass(num_images=50, seconds=s, cpu_seconds=2.5) for s in (2.0, 2.0, 2.0)],
            "c": [Pass(num_images=50, seconds=1.0)] * 3,
        }
    )
    pairs = [("a", "b"), ("b", "a"), ("a", "c")]
    report = build_report(outcome, pairs, absent={}, machine={}, settings={})
    assert report["cpu_ratios"] == {  # 20 ms an image against 50
        "a/b": {"median": 2.5, "min": 2.5, "max": 2.5},
        "b/a": {"median": 0.4, "min": 0.4, "max": 0.4},
    }
    assert report["results"][1]["cpu_us_per_image"]["median"] == 50_000
    lines = report_table(report).splitlines()
    at = lines.index("the same of CPU time          median       min       max")
    assert lines[at + 1].split() == ["a/b", "2.50", "2.50", "2.50"]
    assert "CPU time of all, us/image     median       min       max" in lines


def test_a_peak_of_memory_is_told_where_it_was_measured() -> None:
    passes = [Pass(num_images=1, seconds=1.0, peak_bytes=n * 10**6) for n in (30, 10, 20)]
    report = build_report(
        Outcome(passes={"a": passes}), [], absent={}, machine={}, settings={}
    )
    assert report["results"][0]["peak_mb"] == {"median": 20.0, "min": 10.0, "max": 30.0}
    assert all("peak_mb" not in result for result in REPORT["results"])


def test_the_table_shows_speeds_ratios_and_what_is_absent() -> None:
    assert report_table(REPORT).splitlines() == [
        "images per second             median       min       max",
        "dali-cpu                         330       300       400",
        "torch                            100       100       200",
        "",
        "caller's CPU, us per image    median       min       max",
        "dali-cpu                        3.00      3.00      3.00",
        "",
        "memory after a pass, MB        first      last       min       max",
        "dali-cpu                         600       660       600       800",
        "",
        "ratio, round by round         median       min       max",
        "dali-cpu/torch                  3.00      2.00      3.50",
        "",
        "not measured: webdataset: not installed",
        "not measured: ffcv: ImportError: broken",
    ]


def test_the_table_shows_what_differs_in_the_work_of_each() -> None:
    """And says of whom nothing does."""
    differs = {"dali-cpu": "", "ffcv": "pixels of another DCT", "torch": ""}
    for told, lines in (
        (differs, [
            "differs: ffcv: pixels of another DCT",
            "pixels of the reference bit for bit, each image once a pass: dali-cpu, torch",
        ]),
        ({"ffcv": "another order"}, ["differs: ffcv: another order"]),
    ):  # fmt: skip
        shown = report_table({**REPORT, "differs": told}).splitlines()
        at = shown.index("not measured: webdataset: not installed")
        assert shown[at - len(lines) - 2 : at] == ["", *lines, ""]


def test_columns_stay_below_each_other_beside_long_names() -> None:
    names = ("fullfeed-2-workers/fullfeed-1-worker", "a/b")
    spread = {"median": 1.5, "min": 1.0, "max": 2.0}
    shown = report_table({**REPORT, "ratios": dict.fromkeys(names, spread)}).splitlines()
    at = next(i for i, line in enumerate(shown) if line.startswith("ratio, round by round"))
    assert len({len(line) for line in shown[at : at + 3]}) == 1
    assert [line.split()[0] for line in shown[at + 1 : at + 3]] == list(names)


def test_a_file_that_cannot_be_written_does_not_lose_the_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError):
        publish(REPORT, Paths(tmp_path / "no folder" / "a.json"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(REPORT))
