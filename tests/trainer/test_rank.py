"""The training command in two processes: started, stopped, killed, hung, refused."""

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from trainer import rank as trainer_rank
from trainer import run
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.config import RunConfig
from trainer.rank import find_processes
from trainer.session import Session

PATIENCE_SECONDS = 240.0
RUN = ("--epochs", "6", "--preset", "paper")
NUM_STEPS = 54  # of RUN


def start(shards: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable, run.__file__, "--shards", str(shards), "--out", str(out),
        "--device", "cpu", "--backend", "numpy", "--width", "0.03125", "--batch-size", "4",
        "--processes", "2", *options,
    ]  # fmt: skip
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    with process:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, out, err


@cache
def undisturbed(shards: Path, mode: str) -> Path:
    """The folder of a run that nothing happens to, made once; only to be read."""
    folder = shards.with_name(f"undisturbed-{mode}")
    assert finish(start(shards, folder, *RUN, "--parallel", mode))[0] == 0
    return folder


def ranks_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes of the ranks, in their order; none before they are there."""
    found = psutil.Process(process.pid).children()
    try:
        return sorted(found, key=lambda one: int(one.environ()["RANK"]))
    except (KeyError, psutil.Error):
        return []


def wait_for(path: Path) -> None:
    started = time.monotonic()
    while not path.exists():
        assert time.monotonic() - started < PATIENCE_SECONDS
        time.sleep(0.02)


def last(folder: Path) -> Checkpoint:
    return load_checkpoint(folder / "last.safetensors")


def assert_bit_equal(one: Path, other: Path) -> None:
    first, second = last(one), last(other)
    assert first.progress["step"] == second.progress["step"]
    for part in ("model", "momentum"):
        torch.testing.assert_close(getattr(first, part), getattr(second, part), rtol=0, atol=0)


def test_the_command_trains_in_two_processes_and_tells_of_one(
    shard_folder: Path, tmp_path: Path
) -> None:
    process = start(shard_folder, tmp_path / "run", "--epochs", "1", "--preset", "paper")
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert out.count("\nepoch 1/1: ") == 1
    assert "2 processes, hybrid: at batch 4 its maps are fewer bytes" in out
    assert last(tmp_path / "run").progress["step"] == 9


ENDS = """
import atexit, sys
from trainer.rank import ended_at_once
atexit.register(print, "taken down")
print("said")
with ended_at_once():
    sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("is_rank", "code", "taken_down"), [(True, 1, False), (True, 0, True), (False, 1, True)]
)
def test_only_a_rank_that_fails_ends_with_nothing_taken_down(
    is_rank: bool, code: int, taken_down: bool
) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(code)], capture_output=True, text=True,
        cwd=Path(run.__file__).parents[1], env=kept | ({"LOCAL_RANK": "0"} if is_rank else {}),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.split("\n") == ["said", *["taken down"] * taken_down, ""]


def test_a_run_preempted_while_it_is_built_saves_and_ends_with_75(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Preempted(Session):
        def __init__(self, *arguments: Any) -> None:
            signal.raise_signal(signal.SIGTERM)
            super().__init__(*arguments)

    def killed(number: int, frame: object) -> None:
        raise AssertionError("the signal would have ended the process")

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("trainer.rank.Session", Preempted)
    asked = RunConfig(
        shards=shard_folder, out=tmp_path, epochs=1, batch_size=8, width=1 / 32, backend="numpy",
        device="cpu",
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, killed)
    try:
        with pytest.raises(SystemExit) as ended:
            trainer_rank.run(asked, [])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 75
    assert last(tmp_path).progress["step"] == 0


def test_what_the_user_has_to_put_right_is_told_once(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path / "nowhere", tmp_path / "run"))
    assert (code, out) == (1, "") and len(err.splitlines()) == 1 and "nowhere" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_run_ends_with_75_and_resumes_to_the_same_weights(
    number: signal.Signals, shard_folder: Path, tmp_path: Path
) -> None:
    options = (*RUN, "--parallel", "data")
    process = start(shard_folder, tmp_path / "cut", *options)
    wait_for(tmp_path / "cut" / "last.safetensors")
    process.send_signal(number)
    code, out, _ = finish(process)
    assert code == 75 and "the same command resumes" in out
    assert last(tmp_path / "cut").progress["step"] < NUM_STEPS
    code, out, _ = finish(start(shard_folder, tmp_path / "cut", *options))
    assert code == 0 and "resuming" in out
    assert_bit_equal(undisturbed(shard_folder, "data"), tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_started_again_and_the_weights_are_the_same(
    rank: int, shard_folder: Path, tmp_path: Path
) -> None:
    process = start(shard_folder, tmp_path / "cut", *RUN, "--parallel", "columns")
    wait_for(tmp_path / "cut" / "last.safetensors")
    ranks_of(process)[rank].kill()
    code, out, err = finish(process)
    assert code == 0 and "resuming" in out
    assert f"rank {1 - rank}, step" in err and "connection to another rank was lost" in err
    assert_bit_equal(undisturbed(shard_folder, "columns"), tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named(rank: int, shard_folder: Path, tmp_path: Path) -> None:
    process = start(
        shard_folder, tmp_path / "run", *RUN, "--max-restarts", "0", "--timeout-seconds", "5",
    )  # fmt: skip
    wait_for(tmp_path / "run" / "last.safetensors")
    hung = ranks_of(process)[rank]
    hung.suspend()
    code, _, err = finish(process)
    assert code == 1 and not hung.is_running()
    assert f"rank {1 - rank}, step" in err and f"no answer for 5 s from rank {rank}" in err


def test_processes_are_those_asked_for_or_one_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    shards = Path("shards")
    assert find_processes(RunConfig(shards=shards)) == 2
    assert find_processes(RunConfig(shards=shards, overfit=8)) == 1
    assert find_processes(RunConfig(shards=shards, device="cpu")) == 1
    assert find_processes(RunConfig(shards=shards, device="cpu", processes=3)) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_processes(RunConfig(shards=shards)) == 1
