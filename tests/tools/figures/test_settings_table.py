"""The tables tell all settings, and of several runs exactly those that differ."""

import json
from pathlib import Path

from tests.tools.figures.run_folders import report, write_run
from tools.figures.run_record import read_runs
from tools.figures.settings_table import (
    differing,
    results,
    settings,
    shortened,
    versions,
    versions_here,
)


def test_all_settings_of_a_run_are_told_without_its_list_of_classes(run_folder: Path) -> None:
    (run,) = read_runs([run_folder])
    found = settings(run)
    assert found["preset"] == "modern" and found["training.momentum"] == "0.9"
    assert found["width"] == "0.03125" and found["classes"] == "3"
    assert found["network.exchange"] == "yes" and found["ema"] == "none"
    assert found["network.channels"] == "96, 256, 384, 384, 256"
    told = versions(run)
    assert told["backend"] == "numpy" and "shard_settings.versions.simplejpeg" in told
    assert versions_here()["torch"] == told["torch"]


def test_the_differences_are_those_settings_that_differ(
    run_folder: Path, other_folder: Path
) -> None:
    runs = read_runs([run_folder, other_folder])
    one, other = (settings(run) for run in runs)
    rows = differing(runs)
    chosen = {row.name: row.values for row in rows if not row.result}
    names = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    assert chosen.keys() == names and {"preset", "width", "network.norm"} <= names
    assert chosen["width"] == ("0.03125", "0.0625")
    measured = {row.name: row.values for row in rows if row.result}
    assert measured["epochs finished"] == ("1", "1")
    assert measured["last top-1 error"][0] == results(runs[0])["last top-1 error"]


def test_the_same_run_under_two_names_differs_in_nothing(
    run_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "twin2").mkdir()
    for file in run_folder.iterdir():
        (tmp_path / "twin2" / file.name).symlink_to(file)
    rows = differing(read_runs([run_folder, tmp_path / "twin2"]))
    assert [row.name for row in rows if not row.result] == []


def test_settings_that_differ_far_behind_are_told_though_both_are_shown_by_their_beginning(
    tmp_path: Path,
) -> None:
    folders = [write_run(tmp_path / name, [report(1)]) for name in ("one", "other")]
    for folder, last in zip(folders, (1, 2), strict=True):
        config = {"drops": [*range(100, 130), last], "digest": f"{last}" * 64}
        (folder / "config.json").write_text(json.dumps(config))
    drops, digest = (row for row in differing(read_runs(folders)) if not row.result)
    assert (drops.name, digest.name) == ("drops", "digest")
    assert shortened(drops.values[0]) == shortened(drops.values[1]) and len(set(drops.values)) == 2
    assert shortened(drops.values[0]).endswith("…") and len(shortened(drops.values[0])) == 60
    assert [shortened(value) for value in digest.values] == ["1" * 12 + "…", "2" * 12 + "…"]
    assert shortened("modern") == "modern"
