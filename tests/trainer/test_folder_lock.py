"""One run at a time in a folder; a dead one does not stand in the way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.folder_lock import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from trainer.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock, until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_in_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        with pytest.raises(ValueError, match=f"another process is training in {tmp_path}"):
            FolderLock(tmp_path).take(patience_seconds=0)
        other.communicate("")
    lock = FolderLock(tmp_path)
    lock.take(patience_seconds=0)
    lock.close()


def test_a_killed_run_lets_go_and_one_that_waits_gets_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        lock = FolderLock(tmp_path)
        lock.take()
        lock.close()


def test_where_the_file_system_knows_no_locks_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("trainer.folder_lock.fcntl.flock", unknown)
    lock = FolderLock(tmp_path)
    lock.take()
    lock.close()
