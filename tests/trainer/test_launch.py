"""Ranks are started, told of signals, started again after a crash, and end with one exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cores import available_cores
from trainer.launch import NOTES_VARIABLE, begin_rank, claim_end, end_rank, is_rank

RANK = Path(__file__).with_name("launched_rank.py")
LAUNCH = """
import sys
from trainer.launch import launch
command = [sys.executable, *sys.argv[3:]]
sys.exit(launch(command, processes=int(sys.argv[1]), max_restarts=int(sys.argv[2])))
"""
PATIENCE_SECONDS = 120.0


def temporary(folder: Path) -> Path:
    """Where launcher and ranks put what is theirs for a while, beside the folder of a test."""
    return folder.with_name(f"{folder.name}-temporary")


def start(folder: Path, way: str, *, max_restarts: int = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", LAUNCH, "2", str(max_restarts), str(RANK), str(folder), way]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    temporary(folder).mkdir(exist_ok=True)
    environment["TMPDIR"] = str(temporary(folder))
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def run(folder: Path, way: str, *, max_restarts: int = 0) -> "tuple[int, str, str]":
    with start(folder, way, max_restarts=max_restarts) as launcher:
        out, err = launcher.communicate(timeout=PATIENCE_SECONDS)
        return launcher.returncode, out, err


def wait_for(*paths: Path) -> None:
    started = time.monotonic()
    while not all(path.exists() for path in paths):
        assert time.monotonic() - started < PATIENCE_SECONDS
        time.sleep(0.02)


def begun(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_rank_is_started_with_its_share_of_the_cores(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "succeed")
    assert (code, err) == (0, "")
    assert begun(tmp_path) == ["rank-0-restart-0", "rank-1-restart-0"]
    shares = {path.read_text().split()[1] for path in tmp_path.iterdir()}
    assert shares == {str(max(1, available_cores() // 2))}
    assert list(temporary(tmp_path).iterdir()) == []


def test_all_ranks_start_again_when_one_is_killed(tmp_path: Path) -> None:
    code, _, _ = run(tmp_path, "crash-once", max_restarts=2)
    assert code == 0
    assert {"rank-0-restart-1", "rank-1-restart-1"} <= set(begun(tmp_path))
    assert list(temporary(tmp_path).iterdir()) == []
    assert "rank-0-restart-2" not in begun(tmp_path)


@pytest.mark.slow
def test_ranks_find_each_other_anew_after_every_kill(tmp_path: Path) -> None:
    """Not the addresses of the dead, which a store shared with the agent would give them."""
    code, _, _ = run(tmp_path, "join", max_restarts=3)
    assert code == 0
    assert "rank-0-restart-3" in begun(tmp_path)


def test_restarts_end_and_the_rank_that_crashed_is_named(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "crash", max_restarts=1)
    assert code == 1
    assert "ended with exit code -9" in err
    # whichever crashes first: the other one may be ended before it began
    assert {name.rpartition("-")[2] for name in begun(tmp_path)} == {"0", "1"}


def test_what_a_rank_refuses_is_told_once_and_not_tried_again(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "refuse", max_restarts=3)
    assert (code, out, err) == (3, "refused, told once\n", "")
    assert not list(tmp_path.glob("*-restart-1"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_reaches_every_rank_and_a_preempted_run_is_not_restarted(
    tmp_path: Path, number: signal.Signals
) -> None:
    with start(tmp_path, "wait", max_restarts=3) as launcher:
        wait_for(tmp_path / "rank-0-restart-0", tmp_path / "rank-1-restart-0")
        launcher.send_signal(number)
        assert launcher.wait(PATIENCE_SECONDS) == 75
    assert list(temporary(tmp_path).iterdir()) == []
    for rank in range(2):
        assert (tmp_path / f"rank-{rank}-restart-0-got").read_text() == str([int(number)])
    assert not list(tmp_path.glob("*-restart-1"))


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    ranks = [tmp_path / f"rank-{rank}-restart-0" for rank in range(2)]
    with start(tmp_path, "wait") as launcher:
        wait_for(*ranks)
        launcher.kill()
        wait_for(*(rank.with_name(f"{rank.name}-got") for rank in ranks))
    for rank in ranks:  # the kernel may tell of each thread of the launcher that ended
        got = json.loads(rank.with_name(f"{rank.name}-got").read_text())
        assert set(got) == {int(signal.SIGTERM)}


def test_a_rank_that_starts_after_a_stop_was_asked_for_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NOTES_VARIABLE, str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("trainer.launch.sys.platform", "other")  # this process is to live on
    begin_rank()
    (tmp_path / "stop").touch()
    with pytest.raises(SystemExit) as ended:
        begin_rank()
    assert ended.value.code == 0 and (tmp_path / "end").read_text() == "75"
    assert not claim_end(1)


def test_without_a_launcher_the_code_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(NOTES_VARIABLE, raising=False)
    assert not is_rank()
    with pytest.raises(SystemExit) as ended:
        end_rank(75)
    assert ended.value.code == 75
