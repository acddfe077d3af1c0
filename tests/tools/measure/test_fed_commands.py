"""The commands that measure a step: exit codes, messages, two processes, refusals."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from pipeline.images import Pixels, decode_stored
from tools import benchmark
from tools.measure.fed import FedContest
from trainer.loop import Trainer
from trainer.world import World

SMALL = (
    "--batch-size", "8", "--width", "0.03125", "--device", "cpu", "--backend", "numpy",
    "--seconds", "0.000001",
)  # fmt: skip


def call(command: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(benchmark.main, [command, *(str(each) for each in arguments)])


def fake_report(contest: FedContest, ratio: float) -> dict[str, Any]:
    spread = {"median": ratio, "min": ratio, "max": ratio}
    causes = (
        "step", "storage_read", "host_decode", "device_decode", "contention", "hand_over",
        "python",
    )  # fmt: skip
    return {
        "results": [{"name": "step", "images_per_second": {"median": 1, "min": 1, "max": 1}}],
        "ratios": {},
        "not_measured": {},
        "fed_ratio": spread,
        "required": contest.require,
        "fed": contest.require is None or ratio >= contest.require,
        "ranks": [{"rank": 0, "fed_ratio": spread, "wait_ms": {"read": 1.0}}],
        "attribution": dict.fromkeys(causes, 0.0),
        "advice": "storage is short",
    }


@pytest.mark.parametrize(
    ("ratio", "options", "code"),
    [
        (0.969, ["--require", "0.97"], 1),
        (0.970, ["--require", "0.97"], 0),
        (0.5, [], 0),
    ],
)
def test_require_decides_the_exit_code_and_nothing_is_lost(
    ratio: float, options: list[str], code: int, shard_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def measured(contest: FedContest, world: World, report: object) -> dict[str, Any]:
        return fake_report(contest, ratio)

    monkeypatch.setattr("tools.measure.fed_commands.run_fed_contest", measured)
    json_option = ("--json", tmp_path / "fed.json")
    done = call("fed", "--shards", shard_folder, *json_option, *SMALL, *options)
    assert done.exit_code == code, done.output
    assert json.loads((tmp_path / "fed.json").read_text())["fed_ratio"]["median"] == ratio
    assert json.loads(done.output.splitlines()[-1])["fed_ratio"]["median"] == ratio


@pytest.mark.parametrize(
    ("slow", "required", "code"), [("decoder", "0.97", 1), ("step", "0.2", 0)]
)
def test_a_measured_ratio_below_what_is_required_ends_with_exit_code_1(
    slow: str, required: str, code: int, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a decoder that takes far longer than the step, or the other way round."""

    def slow_decoder(data: bytes) -> Pixels:
        time.sleep(0.004)
        return decode_stored(data)

    def step(trainer: Trainer, batch: object) -> torch.Tensor:
        time.sleep(0.02 if slow == "step" else 0)
        return torch.zeros(())

    monkeypatch.setattr(Trainer, "train_step", step)
    if slow == "decoder":
        monkeypatch.setattr("pipeline.reference.decode_stored", slow_decoder)
    done = call("fed", "--shards", shard_folder, *SMALL, "--require", required)
    report = json.loads(done.output.splitlines()[-1])
    assert done.exit_code == code, done.output
    assert report["required"] == float(required) and report["fed"] is (code == 0)
    assert (report["fed_ratio"]["median"] >= float(required)) is (code == 0)
    if slow == "decoder":
        assert report["short"] == "host_decode"


def test_the_step_is_measured_with_the_options_of_training(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "train_step", lambda trainer, batch: torch.zeros(()))
    done = call("trainer", "--shards", shard_folder, *SMALL, "--preset", "paper")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output.splitlines()[-1])
    settings = report["settings"]
    assert (settings["preset"], settings["batch_size"], settings["width"]) == ("paper", 8, 1 / 32)
    assert report["results"][0]["images_per_second"]["median"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_trainer_of_a_machine_without_a_gpu_says_so(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "train_step", lambda trainer, batch: torch.zeros(()))
    done = call("trainer", "--shards", shard_folder, *SMALL)
    report = json.loads(done.output.splitlines()[-1])
    assert report["not_measured"] == {"GPU": "PyTorch sees no GPU here"}


@pytest.mark.parametrize("command", ["trainer", "fed"])
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--repeats", "4"], 2, "repeats must be at least 5, not 4"),
        (["--seconds", "0"], 2, "--seconds is 0.0, must be more than 0"),
        (["--batch-size", "40"], 1, "the training split has 39 images"),
        (["--batch-size", "0"], 2, "--batch-size is 0, must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(
    command: str, options: list[str], code: int, message: str, shard_folder: Path
) -> None:
    done = call(command, "--shards", shard_folder, *SMALL, *options)
    assert done.exit_code == code
    assert message in done.output


@pytest.mark.parametrize("command", ["trainer", "fed", "modes"])
def test_shards_that_are_not_named_are_a_usage_error(command: str) -> None:
    done = call(command)
    assert done.exit_code == 2 and "--shards DIR is missing" in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(shard_folder: Path) -> None:
    done = call("trainer", "--shards", shard_folder, "--device", "cuda")
    assert done.exit_code == 1
    assert "PyTorch sees no GPU here" in done.output


@pytest.mark.slow
def test_in_two_processes_each_rank_has_its_ratio_and_one_speaks(shard_folder: Path) -> None:
    command = [
        sys.executable, benchmark.__file__, "fed", "--shards", str(shard_folder), *SMALL,
        "--processes", "2", "--require", "1.0",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if report["fed"] else 1), done.stderr
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1]
    assert report["settings"]["processes"] == 2
    assert done.stdout.count("fed ratio") == 1
    assert done.stderr.count("round 5 of 5: real") == 1
