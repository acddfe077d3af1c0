"""Files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.atomic import (
    create_once,
    remove_temporaries,
    require_place,
    whole_file,
    write_whole,
)


def test_the_name_appears_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"all of it")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_earlier_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"earlier")
    with pytest.raises(RuntimeError, match="stop"), whole_file(path) as file:
        file.write(b"half of the la")
        raise RuntimeError("stop")
    assert path.read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_two_writers_of_one_file_do_not_mix_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as first:
        first.write(b"first, ")
        first.flush()
        with whole_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"and whole")
    assert path.read_bytes() == b"first, and whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("notes.tmp", "file.0123.tmp", "file.tar"):
        (tmp_path / name).touch()
    killed = whole_file(tmp_path / "file")
    killed.__enter__().write(b"half")  # what a kill would leave: never closed by the block
    assert len(list(tmp_path.iterdir())) == 4
    assert remove_temporaries(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"notes.tmp", "file.0123.tmp", "file.tar"}
    with pytest.raises(FileNotFoundError):
        killed.__exit__(None, None, None)


def test_a_file_that_cannot_be_written_is_named_as_people_know_it(tmp_path: Path) -> None:
    path = tmp_path / "none" / "file"
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(path, b"")
    assert raised.value.filename == str(path)
    path.parent.touch()
    with pytest.raises(NotADirectoryError) as raised_too:
        write_whole(path, b"")
    assert raised_too.value.filename == str(path)


def test_a_place_is_refused_where_a_folder_is_or_none_is_around_it(tmp_path: Path) -> None:
    require_place(tmp_path / "file", "--out")
    with pytest.raises(ValueError, match=f"--out: {tmp_path} is a folder; name a file in it"):
        require_place(tmp_path, "--out")
    with pytest.raises(ValueError, match="--out: there is no folder .*mkdir -p '.*/not there'"):
        require_place(tmp_path / "not there/file", "--out")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that takes no files")
def test_a_place_is_refused_in_a_folder_that_takes_no_files() -> None:
    with pytest.raises(ValueError, match=r"--json: no file can be made in /proc \(.*\); name an"):
        require_place(Path("/proc/x.json"), "--json")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_of_a_full_disk_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space left on device") as raised:
        with whole_file(path), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")  # names no file, as any write
    assert raised.value.filename == str(path) and not list(tmp_path.iterdir())
    with pytest.raises(OSError) as foreign, whole_file(path):
        raise OSError(errno.EIO, "Input/output error")  # of what was read meanwhile
    assert foreign.value.filename is None


def test_the_first_of_two_creators_wins(tmp_path: Path) -> None:
    assert create_once(tmp_path / "file", b"one") == b"one"
    assert create_once(tmp_path / "file", b"two") == b"one"
    assert (tmp_path / "file").read_bytes() == b"one"
