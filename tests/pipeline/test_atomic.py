"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from pipeline.atomic import whole_file, write_whole


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


def test_what_a_kill_left_behind_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").write_bytes(b"left by a kill, and longer than what comes")
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file.tmp").exists()
