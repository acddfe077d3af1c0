"""The command: runs from any folder, ends with one JSON line, refuses what means nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import tools.benchmark
from tools.benchmark import main
from tools.measure.contestants import PEERS

ENTRY = Path(tools.benchmark.__file__).resolve()


def test_the_entry_file_runs_from_another_folder_and_its_last_line_is_the_json_object(
    shard_folder: Path, tmp_path: Path
) -> None:
    assert os.access(ENTRY, os.X_OK)
    options = ["--backend", "numpy", "--threads", "1", "--batch-size", "8", "--images", "16"]
    done = subprocess.run(
        [sys.executable, ENTRY, "loader", "--shards", shard_folder, *options, "--json", "a.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table, last = done.stdout.splitlines()[:-1], done.stdout.splitlines()[-1]
    report = json.loads(last)
    assert set(report) == {"results", "ratios", "machine", "settings", "not_measured"}
    assert [result["name"] for result in report["results"]] == ["numpy"]
    speed = report["results"][0]["images_per_second"]
    assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert table[1].startswith("numpy")
    assert json.loads((tmp_path / "a.json").read_text()) == report


def test_fewer_than_five_repeats_are_a_usage_error_with_the_reason(shard_folder: Path) -> None:
    done = CliRunner().invoke(main, ["loader", "--shards", str(shard_folder), "--repeats", "4"])
    assert done.exit_code == 2
    assert "repeats must be at least 5, not 4" in done.output


def test_a_folder_without_shards_is_one_message_and_exit_code_1(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["loader", "--shards", str(tmp_path)])
    assert done.exit_code == 1
    assert "prepare_shards.py" in done.output


@pytest.mark.parametrize("command", [["loader", "--shards"], ["fed", "--shards"], ["preflight"]])
@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_a_place_where_no_file_can_be_is_refused_before_anything_is_measured(
    shard_folder: Path, tmp_path: Path, command: list[str], flag: str
) -> None:
    for place, told in ((tmp_path / "no folder/a", "mkdir -p"), (tmp_path, "is a folder")):
        done = CliRunner().invoke(main, [*command, str(shard_folder), flag, str(place)])
        assert done.exit_code == 1
        (line,) = done.output.splitlines()
        assert f"{flag}: " in line and told in line


def test_an_unknown_peer_is_a_usage_error_that_names_those_there_are(shard_folder: Path) -> None:
    done = CliRunner().invoke(main, ["loader", "--shards", str(shard_folder), "--against", "x"])
    assert done.exit_code == 2
    assert ", ".join(f"'{name}'" for name in PEERS) in done.output
