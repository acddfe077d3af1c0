"""One process and every mode take turns, each with its threads, and come to one report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner

from pipeline.cores import available_cores
from pipeline.loader import Batch
from tests.trainer.ranks import run_ranks
from tools import benchmark
from tools.measure.modes import ALONE, ModesContest, modes_table, run_modes_contest
from trainer.config import RunConfig
from trainer.loop import Trainer
from trainer.model import AlexNet
from trainer.parallel import MODES
from trainer.presets import PAPER
from trainer.world import World

SMALL = ("--batch-size", "4", "--width", "0.03125", "--device", "cpu", "--backend", "numpy")


def contest(shards: Path, *, require: float | None = None, **options: Any) -> ModesContest:
    config = RunConfig(
        shards=shards, preset="paper", batch_size=4, width=1 / 32, device="cpu", backend="numpy",
        processes=2, **options,
    )  # fmt: skip
    return ModesContest(config=config, pass_seconds=1e-9, require=require)


def here() -> World:
    size = dist.get_world_size()
    return World(device=torch.device("cpu"), rank=dist.get_rank(), size=size, local_size=size)


Made = list[tuple[str, int]]  # of each step: the mode, and how many threads it had


def measured(asked: ModesContest) -> tuple[dict[str, Any], Made]:
    """The report in a rank, and the steps that this rank made, which compute nothing."""
    made: Made = []

    def step(self: Trainer, batch: Batch) -> torch.Tensor:
        made.append((self.layout.mode, torch.get_num_threads()))
        return self.layout.ranks.total(torch.zeros(()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        try:
            return run_modes_contest(asked, here()), made
        finally:
            torch.set_num_threads(1)


def test_each_has_its_threads_and_the_other_ranks_rest_beside_one_process(
    shard_folder: Path,
) -> None:
    """In every round all take turns, in the same order."""
    (report, first), (same, second) = run_ranks(2, measured, contest(shard_folder))
    assert report["ratios"] == same["ratios"]
    share = max(1, available_cores() // 2)
    assert set(first) == {("alone", available_cores()), *((mode, share) for mode in MODES)}
    assert set(second) == {(mode, share) for mode in MODES}
    assert [one for one in first if one[0] != "alone"] == second
    of_a_pass = 1 + report["settings"]["steps_per_pass"]
    rounds = [mode for mode in ("alone", *MODES) for _ in range(of_a_pass)] * 6
    assert [mode for mode, _ in first][-len(rounds) :] == rounds


def reported(asked: ModesContest) -> dict[str, Any]:
    """The report in a rank, of true steps, each on one core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.measure.modes.available_cores", lambda: 1)
        return run_modes_contest(asked, here())


REPORT_KEYS = {
    "results", "ratios", "machine", "settings", "not_measured", "sent_bytes", "required", "enough",
}  # fmt: skip
SETTINGS_KEYS = {
    "repeats", "steps_per_pass", "batch_size", "preset", "width", "precision", "wire", "device",
    "processes", "cores", "seed", "fingerprint",
}  # fmt: skip


def test_the_report_tells_speeds_ratios_and_bytes_of_every_mode(shard_folder: Path) -> None:
    found = run_ranks(2, reported, contest(shard_folder, require=1e-6))
    report = json.loads(json.dumps(found[0]))
    assert set(report) == REPORT_KEYS and set(report["settings"]) == SETTINGS_KEYS
    assert [one["name"] for one in report["results"]] == [ALONE, *MODES]
    assert list(report["ratios"]) == [f"{mode}/{ALONE}" for mode in MODES]
    num_parameters = sum(p.numel() for p in AlexNet(PAPER, 3, 1 / 32).parameters())
    assert report["sent_bytes"]["data"] == pytest.approx(4 * num_parameters, abs=8)
    float_pixels = 4 * 2 * 3 * 224 * 224  # of a rank's two images: runs exchange them as bytes
    assert float_pixels / 4 < report["sent_bytes"]["columns"] < float_pixels
    assert report["enough"] and report["required"] == 1e-6
    table = modes_table(report)
    assert "required of every mode: 1e-06, reached" in table
    assert all(mode in table for mode in (ALONE, *MODES))


def test_a_mode_that_the_network_does_not_have_is_told_with_the_reason(
    shard_folder: Path,
) -> None:
    """The others are measured, and judged."""
    asked = contest(shard_folder, require=1e6, settings=("columns=1",))
    for report, _ in run_ranks(2, measured, asked):
        assert "two columns" in report["not_measured"]["columns"]
        assert [one["name"] for one in report["results"]] == [ALONE, "data", "hybrid"]
        assert not report["enough"] and "1e+06, not reached" in modes_table(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "1"], "--processes is 1, must be at least 2"),
        (["--repeats", "4"], "repeats must be at least 5, not 4"),
        (["--seconds", "0"], "--seconds is 0.0, must be more than 0"),
        (["--require", "0"], "--require is 0.0, must be a number more than 0"),
        (["--require", "inf"], "--require is inf, must be a number more than 0"),
        (["--require", "nan"], "--require is nan, must be a number more than 0"),
        (["--parallel", "data"], "No such option"),
    ],
)
def test_what_means_nothing_is_refused(
    options: list[str], message: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(
        benchmark.main, ["modes", "--shards", str(tmp_path), *SMALL, *options]
    )
    assert done.exit_code == 2 and message in done.output


@pytest.mark.slow
def test_the_command_starts_its_ranks_and_ends_with_the_verdict(
    shard_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "modes.json"
    command = [
        sys.executable, benchmark.__file__, "modes", "--shards", str(shard_folder), *SMALL,
        "--preset", "paper", "--seconds", "0.000001", "--json", str(path), "--require", "1000",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    report = json.loads(path.read_text())
    assert done.returncode == 1 and not report["enough"], done.stderr
    assert report["settings"]["processes"] == 2
    assert json.loads(done.stdout.splitlines()[-1]) == report
    assert done.stdout.count("sent by each in a step") == 1
