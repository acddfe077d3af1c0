"""Memory shared by name between processes, gone with the last of them."""

import gc
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import pipeline.shared_memory
from pipeline.shared_memory import folder_bytes, shared_array

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own in place of the machine's."""
    monkeypatch.setattr(pipeline.shared_memory, "FOLDER", tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")]


def test_all_who_ask_by_a_name_write_to_the_same_memory(folder: Path) -> None:
    one, other = (shared_array("name", 1000, 3) for _ in range(2))
    stranger = shared_array("another name", 1000, 2)
    assert not one.any() and one.shape == (1000,)
    one[7] = 42
    assert other[7] == 42 and not stranger.any()
    third = shared_array("name", 1000, 3)
    assert third[7] == 42


def test_the_name_goes_when_all_have_come_and_the_next_begin_anew(folder: Path) -> None:
    one = shared_array("name", 1000, 2)
    assert len(files(folder)) == 1
    other = shared_array("name", 1000, 2)
    assert files(folder) == []
    one[0] = 9
    fresh = shared_array("name", 1000, 2)
    assert not fresh.any() and other[0] == 9


def test_what_nobody_uses_any_more_is_removed_when_somebody_asks(folder: Path) -> None:
    left = shared_array("left behind", 1000, 2)
    used = shared_array("in use", 1000, 2)
    del left
    gc.collect()
    shared_array("name", 1000, 1)
    assert len(files(folder)) == 1
    used[3] = 5
    assert shared_array("in use", 1000, 2)[3] == 5


def test_memory_that_is_not_there_is_an_error_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, first: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        shared_array("name", 1000, 2)
    assert files(folder) == []


def test_the_room_is_that_of_the_file_system(folder: Path) -> None:
    found = os.statvfs(folder)
    assert folder_bytes() == found.f_blocks * found.f_frsize > 0


def test_without_such_a_folder_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.shared_memory, "FOLDER", Path("/no/such/folder"))
    assert folder_bytes() == 0


def _write_and_wait(folder: str, connection: Connection) -> None:
    pipeline.shared_memory.FOLDER = Path(folder)
    memory = shared_array("name", 1000, 2)
    memory[:] = 7
    connection.send("written")
    connection.recv()


def test_another_process_sees_it_and_may_die_of_anything(folder: Path) -> None:
    ours = shared_array("name", 1000, 2)
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=_write_and_wait, args=(str(folder), there))
    process.start()
    assert here.recv() == "written"
    process.kill()
    process.join()
    assert (ours == 7).all() and files(folder) == []
