"""Ranks are started, told of signals, started again after a crash, and end with one exit code."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pipeline.cores import available_cores
from trainer.launch import NOTES_VARIABLE, begin_rank, claim_end, end_rank, is_rank, launch

RANK = Path(__file__).with_name("launched_rank.py")
PATIENCE_SECONDS = 120.0
# Launchers begin with what they import: its processes fork from one that did so once.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["torch.distributed.launcher.api"])


def temporary(folder: Path) -> Path:
    """Where launcher and ranks put what is theirs for a while, beside the folder of a test."""
    return folder.with_name(f"{folder.name}-temporary")


def told(folder: Path, name: str) -> Path:
    """Where what they print goes; name: of the stream."""
    return folder.with_name(f"{folder.name}-{name}")


def be_launcher(folder: Path, command: list[str], max_restarts: int) -> None:
    """Two ranks, by a process of its own output, environment and exit code."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(told(folder, name), os.O_WRONLY | os.O_CREAT), number)
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ["TMPDIR"] = str(temporary(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    sys.exit(launch(command, processes=2, max_restarts=max_restarts))


@contextmanager
def launcher(folder: Path, way: str, *, max_restarts: int = 0) -> Iterator[BaseProcess]:
    """A launcher that runs, and is ended with the block."""
    temporary(folder).mkdir(exist_ok=True)
    command = [sys.executable, str(RANK), str(folder), way]
    process = FORKED.Process(target=be_launcher, args=(folder, command, max_restarts))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run(folder: Path, way: str, *, max_restarts: int = 0) -> "tuple[int | None, str, str]":
    with launcher(folder, way, max_restarts=max_restarts) as process:
        process.join(PATIENCE_SECONDS)
        out, err = (told(folder, name).read_text() for name in ("out", "err"))
        return process.exitcode, out, err


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
    with launcher(tmp_path, "wait", max_restarts=3) as process:
        wait_for(tmp_path / "rank-0-restart-0", tmp_path / "rank-1-restart-0")
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 75
    assert list(temporary(tmp_path).iterdir()) == []
    for rank in range(2):
        assert (tmp_path / f"rank-{rank}-restart-0-got").read_text() == str([int(number)])
    assert not list(tmp_path.glob("*-restart-1"))


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    ranks = [tmp_path / f"rank-{rank}-restart-0" for rank in range(2)]
    with launcher(tmp_path, "wait") as process:
        wait_for(*ranks)
        process.kill()
        wait_for(*(rank.with_name(f"{rank.name}-got") for rank in ranks))
    for rank in ranks:  # the kernel may tell of each thread of the launcher that ended
        got = json.loads(rank.with_name(f"{rank.name}-got").read_text())
        assert set(got) == {int(signal.SIGTERM)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_that_die_of_a_stop_while_they_start_were_preempted(
    tmp_path: Path, number: signal.Signals
) -> None:
    with launcher(tmp_path, "start-up") as process:
        wait_for(*(tmp_path / f"rank-{rank}-restart-0" for rank in range(2)))
        assert process.pid
        os.kill(process.pid, number)
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 75


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


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, True),
        ({"RANK": "1"}, False),  # once is enough
        ({"TORCHELASTIC_USE_AGENT_STORE": "False"}, False),  # as with the variable set
        ({"TORCHELASTIC_MAX_RESTARTS": "0"}, False),
    ],
)
def test_a_torchrun_whose_restarts_may_fail_is_told_of(
    changes: dict[str, str],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_torchrun = {
        "LOCAL_RANK": "0", "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "3",
    }  # fmt: skip
    for name, value in (by_torchrun | changes).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(NOTES_VARIABLE, raising=False)
    monkeypatch.setattr("trainer.launch.sys.platform", "other")  # this process is to live on
    begin_rank()
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is not set" in capsys.readouterr().err) is warned


def test_without_a_launcher_the_code_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(NOTES_VARIABLE, raising=False)
    assert not is_rank()
    with pytest.raises(SystemExit) as ended:
        end_rank(75)
    assert ended.value.code == 75
