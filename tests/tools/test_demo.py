"""The demo runs every command once, looks last, and says where the report lies."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.demo import main
from tools.measure.tour import ROOT, Tour

SPLIT = {"found": 4, "written": 3, "quarantined": 1, "enlarged": 2, "shards": [{"bytes": 10**6}]}
EPOCH = {"train_seconds": 2.0, "images_per_second": 50.0, "data_wait_seconds": 0.5}
SPREAD = {"median": 1000.0, "min": 900.0, "max": 1100.0}
FILES = {
    "shards/dataset.json": {"splits": {"train": SPLIT, "val": SPLIT}},
    "shards/pca.json": {"eigenvalues": [10_000.0, 900.0, 225.0]},
    "run/metrics.jsonl": EPOCH,
    "evaluation.json": {"top1_error": 0.25, "top5_error": 0.0, "num_images": 8},
    "benchmark.json": {
        "results": [{"name": "numpy", "images_per_second": SPREAD}],
        "ratios": {"numpy/torch": {"median": 2.5, "min": 2.0, "max": 3.0}},
    },
}


def written_demo(folder: Path) -> None:
    """What the commands leave, as far as the table reads it."""
    for name, value in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))


def test_every_command_comes_once_and_the_report_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []

    def note(self: Tour, name: str, *command: str | Path) -> None:
        commands.append(tuple(str(word) for word in command))
        self.seconds[name] = 1.0

    monkeypatch.setattr(Tour, "run", note)
    demo = tmp_path / "a demo"
    written_demo(demo)
    done = CliRunner().invoke(main, [str(demo)], catch_exceptions=False)
    tools = [command[0] for command in commands]
    assert len(set(tools)) == len(tools) == 8
    assert all((ROOT / tool).is_file() for tool in tools)
    assert commands[-1][0] == "tools/report.py"
    assert {str(demo / "run"), str(demo / "images")} <= set(commands[-1])
    assert done.output.splitlines()[-1].endswith(f"{(demo / 'report.html').as_uri()}")


def test_the_table_tells_what_the_files_hold(tmp_path: Path) -> None:
    written_demo(tmp_path)
    steps = ("images", "prepare", "pca", "train", "evaluate", "preview", "benchmark", "report")
    table = Tour(tmp_path, dict.fromkeys(steps, 10.0)).table()
    for told in (
        "4 train, 4 val", "found 8 = written 6 + quarantined 2", "100.0, 30.0, 15.0",
        "50 images/s, waited for data 25.0%", "top-1 error 25.0%", "numpy 1,000 images/s",
        "ratio numpy/torch 2.50", "preview.png", "report.html", "80 s",
    ):  # fmt: skip
        assert told in table


def test_a_command_that_fails_ends_the_demo_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tools/preview.py ended with exit code 2; see its"):
        Tour(tmp_path).run("preview", "tools/preview.py", "--no-such-option")
