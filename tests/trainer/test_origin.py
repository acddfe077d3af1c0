"""A run needs the checkpoint it begins with until it has one of its own, and no longer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config import RunConfig
from trainer.origin import NOTE_NAME, needs_origin, note_origin, origin_digest
from trainer.session import Session

DIGEST = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-4


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run in an empty folder that begins with the weights of a file."""
    (tmp_path / "old").write_bytes(b"abc")
    (tmp_path / "run").mkdir()
    shards = tmp_path / "shards"
    return RunConfig(shards=shards, init_from=tmp_path / "old", out=tmp_path / "run")


def go_on(config: RunConfig) -> None:
    """Puts the folder in the state of a run that has saved."""
    assert config.init_from is not None
    note_origin(config.folder, config.init_from, DIGEST)
    (config.folder / "last.safetensors").touch()


def test_a_run_that_begins_is_told_by_the_content_of_the_file(config: RunConfig) -> None:
    assert needs_origin(config) and origin_digest(config) == DIGEST
    plain = dataclasses.replace(config, init_from=None)
    assert not needs_origin(plain) and origin_digest(plain) is None
    (config.folder.parent / "old").unlink()
    with pytest.raises(ValueError, match="--init-from .*old cannot be read: No such file or dir"):
        origin_digest(config)


@pytest.mark.parametrize("content", [None, b"changed"], ids=["gone", "changed"])
def test_a_run_that_goes_on_does_not_look_at_the_file_again(
    config: RunConfig, content: bytes | None
) -> None:
    go_on(config)
    old = config.folder.parent / "old"
    old.unlink() if content is None else old.write_bytes(content)
    assert not needs_origin(config) and origin_digest(config) == DIGEST


def test_before_the_first_checkpoint_the_file_is_looked_at_again(config: RunConfig) -> None:
    """The run starts from the beginning then, with what is in the file now."""
    go_on(config)
    (config.folder / "last.safetensors").unlink()
    (config.folder.parent / "old").write_bytes(b"changed")
    assert needs_origin(config) and origin_digest(config) != DIGEST


def test_a_file_of_another_name_is_told_by_its_content(config: RunConfig) -> None:
    go_on(config)
    other = config.folder.parent / "other"
    moved = dataclasses.replace(config, init_from=other)
    with pytest.raises(ValueError, match="other cannot be read: .*run began with .*old: "):
        origin_digest(moved)
    other.write_bytes(b"abc")
    assert origin_digest(moved) == DIGEST
    other.write_bytes(b"abcd")
    assert origin_digest(moved) != DIGEST


@pytest.mark.parametrize("note", [None, b"", b"{}", b"[1]", b'{"path": "a"}', b"\xff"])
def test_without_a_whole_note_the_file_is_looked_at(config: RunConfig, note: bytes | None) -> None:
    go_on(config)
    path = config.folder / NOTE_NAME
    path.unlink() if note is None else path.write_bytes(note)
    assert origin_digest(config) == DIGEST
    (config.folder.parent / "old").unlink()
    with pytest.raises(ValueError, match="old cannot be read: No such file or directory$"):
        origin_digest(config)


@pytest.mark.parametrize("change", ["gone", "cut"])
def test_a_run_goes_on_without_the_file_as_it_would_with_it(
    change: str, shard_folder: Path, tmp_path: Path
) -> None:
    small: dict[str, Any] = {
        "shards": shard_folder, "preset": "paper", "batch_size": 8, "width": 1 / 32,
        "backend": "numpy", "device": "cpu", "epochs": 1,
    }  # fmt: skip
    source = tmp_path / "source" / "last.safetensors"
    with Session(RunConfig(**small, seed=1, out=source.parent)) as session:
        assert session.run()
    whole, stopped = (
        RunConfig(**small | {"epochs": 2}, init_from=source, out=tmp_path / name)
        for name in ("whole", "stopped")
    )
    with Session(whole) as session:
        assert session.run()
    with Session(dataclasses.replace(stopped, limit_steps=4)) as session:
        assert session.run() and session.epoch == 1
    source.unlink() if change == "gone" else source.write_bytes(source.read_bytes()[:999])
    with Session(stopped) as session:
        assert session.epoch == 1 and session.run()
    ends = [(each.folder / "last.safetensors").read_bytes() for each in (whole, stopped)]
    assert ends[0] == ends[1]
    config = json.loads((stopped.folder / "config.json").read_bytes())
    note = json.loads((stopped.folder / NOTE_NAME).read_bytes())
    assert note == {"path": str(source), "sha256": config["init_from"]["sha256"]}
    with pytest.raises(ValueError, match="source/last.safetensors"):
        Session(dataclasses.replace(stopped, out=tmp_path / "new"))
    other = dataclasses.replace(stopped, init_from=whole.folder / "last.safetensors")
    with pytest.raises(ValueError, match="another configuration: init_from.sha256 is"):
        Session(other)
