"""What is left of a run is read; what is not is told, in a sentence each."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import cut_file, flip_byte
from tests.tools.figures.run_folders import report, write_run
from tools.figures.run_record import last_finite, number, read_run, read_runs, series


def test_a_whole_run_has_no_remark(run_folder: Path, shard_folder: Path) -> None:
    run = read_run(run_folder, "run")
    assert run.remarks == [] and run.shards == shard_folder
    assert run.checkpoint is not None and run.checkpoint_name == "best.safetensors"
    assert run.setting("preset.name") == "modern" and run.setting("preset.no.such") is None
    assert series(run.reports, "top1_error") == [(1.0, run.reports[0]["top1_error"])]


def test_a_line_cut_off_at_any_length_is_left_out_and_named(tmp_path: Path) -> None:
    lines = [report(1), report(2)]
    run_folder = write_run(tmp_path / "run", lines)
    whole = (run_folder / "metrics.jsonl").read_bytes()
    last = len(json.dumps(report(2)))
    for length in (1, 10, last - 1):
        (run_folder / "metrics.jsonl").write_bytes(whole[:-length])
        run = read_run(run_folder, "run")
        assert run.reports == [report(1)]
        assert "Line 2 of metrics.jsonl is cut off or damaged; it is left out." in run.remarks


@pytest.mark.parametrize(
    "line",
    [
        "null", "[]", "{}", '{"epoch": "x"}', '{"epoch": NaN}', "\xff", '{"epoch": true}',
        f'{{"epoch": {"9" * 400}}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_line_that_is_no_report_is_left_out(tmp_path: Path, line: str) -> None:
    run = read_run(write_run(tmp_path / "run", [line, report(1)]), "run")
    assert run.reports == [report(1)] and any("Line 1 of" in text for text in run.remarks)


def test_many_damaged_lines_are_told_in_one_sentence(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(20_000)
    run_folder = write_run(tmp_path / "run", [report(1), report(2)])
    with open(run_folder / "metrics.jsonl", "ab") as file:
        file.write(b"\n" + noise)
    run = read_run(run_folder, "run")
    damaged = sum(bool(line.strip()) for line in noise.split(b"\n"))
    assert run.reports == [report(1), report(2)]
    (told,) = [text for text in run.remarks if "metrics.jsonl" in text]
    assert told == (
        f"{damaged} lines of metrics.jsonl are cut off or damaged, line 3 the first of them; "
        f"they are left out."
    )


@pytest.mark.parametrize(
    "config",
    [
        [], "[" * 100_000, {"preset": 3}, {"preset": {"training": {"epochs": "many"}}},
        {"preset": {"training": {"layer_rates": [[1, "conv1"], 3]}}}, {"width": "wide"},
        {"preset": {"augmentation": {"lighting_off_epoch": "x"}}}, {"classes": 7},
    ],
    ids=lambda config: str(config)[:40],
)  # fmt: skip
def test_a_config_that_is_not_what_a_run_writes_is_told_and_left_out(
    run_folder: Path, tmp_path: Path, config: object
) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    run = read_run(folder, "run")
    assert run.config == {} and run.setting("preset.name") == "modern"
    assert any("config.json is missing or damaged" in text for text in run.remarks)


def test_a_config_of_another_version_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [report(1)])
    (folder / "config.json").write_text('{"preset": {"name": "later"}, "novel": [1, {"x": 2}]}')
    run = read_run(folder, "run")
    assert run.setting("preset.name") == "later" and run.setting("novel") == [1, {"x": 2}]


def test_losses_that_are_no_numbers_stay_in_the_series_and_out_of_the_last_value(
    tmp_path: Path,
) -> None:
    lines = [report(1), report(2, val_loss=math.nan), report(3, val_loss=None)]
    run = read_run(write_run(tmp_path / "run", [*lines]), "run")
    (first, _), (second, value) = series(run.reports, "val_loss")
    assert (first, second) == (1, 2) and math.isnan(value)
    assert last_finite(run.reports, "val_loss") == 2.0
    assert number({"x": True}, "x") is None and number({"x": "1"}, "x") is None


def test_a_run_without_a_checkpoint_or_a_finished_epoch_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder, "run")
    assert run.checkpoint is None and run.shards is None and run.reports == []
    told = " ".join(run.remarks)
    assert "no epoch was finished" in told and "Without a checkpoint" in told
    assert "give --shards" in told


def test_shards_that_are_given_are_those_used(tmp_path: Path, run_folder: Path) -> None:
    assert read_run(run_folder, "run", shards=tmp_path).shards == tmp_path


def test_a_damaged_best_checkpoint_is_replaced_by_the_last(
    run_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    flip_byte(folder / "best.safetensors", -5)
    run = read_run(folder, "run")
    assert run.checkpoint_name == "last.safetensors" and run.checkpoint is not None
    assert any("best.safetensors is damaged" in text for text in run.remarks)
    cut_file(folder / "last.safetensors", 1000)
    run = read_run(folder, "run")
    assert run.checkpoint is None and len(run.remarks) == 3


def test_a_checkpoint_of_another_preset_is_told(
    run_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    shutil.copy(other_folder / "best.safetensors", folder / "best.safetensors")
    (remark,) = read_run(folder, "run").remarks
    assert remark.startswith("best.safetensors is of another run than config.json")
    assert "and " in remark and "more" in remark


def test_settings_of_a_lost_config_are_the_checkpoint_s(run_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (folder / "config.json").write_text("{")
    run = read_run(folder, "run")
    assert run.setting("preset.name") == "modern"
    assert any("config.json is missing or damaged" in text for text in run.remarks)


def test_runs_get_names_that_differ(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / where / "run", [report(1)]) for where in "ab")
    assert [run.name for run in read_runs([one, other])] == [str(one), str(other)]
    third = write_run(tmp_path / "third", [report(1)])
    assert [run.name for run in read_runs([one, third])] == ["run", "third"]
    with pytest.raises(ValueError, match="named twice"):
        read_runs([one, one])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="is no run folder"):
            read_run(folder, "run")
