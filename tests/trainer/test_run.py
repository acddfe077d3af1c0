"""The training command: what it prints, its exit codes, its messages."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trainer import run
from trainer.presets import MODERN


def call(*arguments: str) -> Result:
    return CliRunner().invoke(run.main, list(arguments))


def test_the_options_are_those_of_the_contract() -> None:
    assert sorted(option for parameter in run.main.params for option in parameter.opts) == [
        "--backend",
        "--batch-size",
        "--calibrate",
        "--compile",
        "--config",
        "--device",
        "--ema",
        "--epochs",
        "--exact",
        "--fed-ratio",
        "--init-from",
        "--limit-steps",
        "--loader-threads",
        "--max-restarts",
        "--micro-batch",
        "--order",
        "--out",
        "--overfit",
        "--parallel",
        "--precision",
        "--prefetch",
        "--preset",
        "--processes",
        "--profile",
        "--replace-head",
        "--resident",
        "--resident-format",
        "--save-every-epochs",
        "--save-every-minutes",
        "--seed",
        "--set",
        "--shards",
        "--show-preset",
        "--stage-bytes",
        "--stage-dir",
        "--summary",
        "--tensorboard",
        "--timeout-seconds",
        "--weight-report",
        "--width",
        "--window",
        "--wire",
    ]


def test_show_preset_prints_every_field() -> None:
    result = call("--show-preset", "modern")
    assert result.exit_code == 0
    assert tomllib.loads(result.output) | {"name": "modern"} == MODERN.to_dict()


def test_show_preset_and_summary_take_the_fields_that_are_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[network]\nconv6 = 256\n")
    changes = ["--config", str(path), "--set", "momentum=0.8"]
    shown = tomllib.loads(call("--show-preset", "kriz2012", *changes).output)
    assert shown["network"]["conv6"] == 256 and shown["training"]["momentum"] == 0.8
    assert "conv6" in call("--summary", "--preset", "paper", *changes).output


def test_summary_prints_the_papers_counts() -> None:
    result = call("--summary", "--preset", "paper")
    assert result.exit_code == 0 and "60,965,224    724,406,816" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--shards DIR is missing"),
        (["--shards", "x", "--preset", "papre"], "'papre' is not one of 'modern', 'paper', 'kriz"),
        (["--shards", "x", "--width", "wide"], "'wide' is not a valid float"),
        (["--shards", "x", "--window", "0"], "'0' is neither 'all' nor a number of shards"),
        (["--shards", "x", "--window", "some"], "'some' is neither 'all' nor a number"),
        (["--shards", "x", "--stage-bytes", "lots"], "'lots' is no size; write it like 200GB"),
        (["--shards", "nosuch://x"], "nosuch://x cannot be opened"),
    ],
)
def test_a_wrong_call_ends_with_2(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2 and message in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shards", "nowhere"], "nowhere"),
        (["--shards", "x", "--epochs", "0"], "--epochs is 0, must be at least 1"),
        (
            ["--shards", "x", "--processes", "64", "--batch-size", "32"],
            "--processes 64 does not divide --batch-size 32",
        ),
        (["--shards", "memory://no", "--stage-dir", "x"], "there is no memory://no/dataset.json"),
        (["--shards", "x", "--replace-head"], "--replace-head goes with --init-from"),
        (["--show-preset", "paper", "--set", "epoch=3"], "did you mean 'epochs'?"),
        (["--summary", "--config", "none.toml"], "--config none.toml cannot be read"),
    ],
)
def test_what_cannot_be_done_ends_with_1_and_one_message(
    arguments: list[str], message: str
) -> None:
    result = call(*arguments)
    assert result.exit_code == 1 and message in result.output
    assert len(result.output.splitlines()) == 1


def test_an_out_that_cannot_be_written_ends_with_1(shard_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    result = call("--shards", str(shard_folder), "--out", str(tmp_path / "file" / "run"),
                  "--width", "0.03")  # fmt: skip
    assert result.exit_code == 1 and "cannot be written" in result.output


def test_shards_of_a_url_need_a_stage(in_memory: Path, tmp_path: Path) -> None:
    words = ["--shards", str(in_memory), "--width", "0.03", "--out", str(tmp_path / "run")]
    result = call(*words)
    assert result.exit_code == 1 and "--stage-dir DIR" in result.output
    assert not (tmp_path / "run").exists()
    result = call(*words, "--stage-dir", str(tmp_path / "stage"), "--stage-bytes", "100kB")
    assert result.exit_code == 1 and "--stage-bytes is 100.0 kB" in result.output
    assert len(result.output.splitlines()) == 1


def test_it_trains_from_another_folder_as_a_file(shard_folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-W", "error", run.__file__, "--shards", str(shard_folder),
        "--epochs", "1", "--width", "0.03", "--backend", "numpy", "--device", "cpu",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "batch 4 (the preset's is 1,024), learning rate 0.005" in result.stdout
    assert "epoch 1/1: train loss" in result.stdout.splitlines()[-1]
    files = {path.name for path in (tmp_path / "runs" / "modern-0").iterdir()}
    told = {"config.json", "metrics.jsonl", "metrics.csv", "shards.json"}
    assert files == {"last.safetensors", "best.safetensors", "lock"} | told
