"""A run needs the checkpoint it begins with until it has one of its own, and no longer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.trainer.ranks import run_ranks
from trainer.config import RunConfig
from trainer.origin import NOTE_NAME, needs_origin, note_origin, origin_digest
from trainer.session import Session
from trainer.world import World

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
    note_origin(config.folder, config.init_from)
    (config.folder / "config.json").write_text(json.dumps({"init_from": {"sha256": DIGEST}}))
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
    other.write_bytes(b"abc")
    moved = dataclasses.replace(config, init_from=other)
    assert origin_digest(moved) == DIGEST
    other.write_bytes(b"abcd")
    assert origin_digest(moved) != DIGEST


def test_a_run_that_goes_on_needs_no_file_whatever_its_name(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the run folder has moved to another machine, say. It is told, and the note stays."""
    go_on(config)
    gone = config.folder.parent / "gone"
    assert origin_digest(dataclasses.replace(config, init_from=gone)) == DIGEST
    err = capsys.readouterr().err
    assert f"--init-from {gone} cannot be read: No such file or directory; the run goes on" in err
    assert err.endswith(f"from its own checkpoint (it began with {config.init_from})\n")
    note_origin(config.folder, gone)
    note = json.loads((config.folder / NOTE_NAME).read_bytes())
    assert note == {"path": str(config.init_from)}


@pytest.mark.parametrize("content", [None, b"changed"], ids=["gone", "changed"])
def test_a_machine_may_call_the_file_by_another_name(
    config: RunConfig, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """To begin with, each reads its own; a run that goes on asks the first rank alone."""
    own = dataclasses.replace(config, init_from=config.folder.parent / "own name")
    assert own.init_from is not None
    with pytest.raises(ValueError, match="own name cannot be read"):
        origin_digest(own, is_first=False)
    own.init_from.write_bytes(b"abcd")
    assert origin_digest(own, is_first=False) not in (None, DIGEST)
    go_on(config)
    own.init_from.unlink() if content is None else own.init_from.write_bytes(content)
    assert origin_digest(own, is_first=False) == DIGEST
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("note", [None, b"", b"{}", b"[1]", b'{"path": 1}', b"\xff"])
def test_without_a_whole_note_a_file_that_is_there_is_looked_at(
    config: RunConfig, note: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(config)
    path, old = config.folder / NOTE_NAME, config.folder.parent / "old"
    path.unlink() if note is None else path.write_bytes(note)
    old.write_bytes(b"changed")
    assert origin_digest(config) != DIGEST
    old.unlink()
    assert origin_digest(config) == DIGEST
    assert capsys.readouterr().err.endswith("from its own checkpoint\n")


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"init_from": 1}'])
def test_where_the_folder_does_not_say_what_it_began_with_the_file_is_needed(
    config: RunConfig, text: str | None
) -> None:
    go_on(config)
    path, old = config.folder / "config.json", config.folder.parent / "old"
    path.unlink() if text is None else path.write_text(text)
    assert origin_digest(config) == DIGEST
    old.unlink()
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
    assert json.loads((stopped.folder / NOTE_NAME).read_bytes()) == {"path": str(source)}
    with pytest.raises(ValueError, match="source/last.safetensors"):
        Session(dataclasses.replace(stopped, out=tmp_path / "new"))
    other = dataclasses.replace(stopped, init_from=whole.folder / "last.safetensors")
    with pytest.raises(ValueError, match="another configuration: init_from.sha256 is"):
        Session(other)


def tune_and_go_on(config: RunConfig, folder: Path) -> int:
    """On each rank, whose machine has the file by another name; then the files are gone."""
    rank = dist.get_rank()
    world = World(device=torch.device("cpu"), rank=rank, size=2, local_size=2)
    own = dataclasses.replace(config, init_from=folder / f"of-rank-{rank}")
    with Session(dataclasses.replace(own, limit_steps=1), world) as session:
        assert session.run()
    dist.barrier()
    (folder / f"of-rank-{rank}").unlink()
    with Session(dataclasses.replace(own, limit_steps=2), world) as session:
        assert session.run()
        return session.trainer.step


def test_machines_of_a_run_may_have_the_file_in_different_places(
    shard_folder: Path, tmp_path: Path
) -> None:
    small = RunConfig(
        shards=shard_folder, preset="paper", batch_size=8, width=1 / 32, backend="numpy",
        device="cpu", epochs=1, limit_steps=1, out=tmp_path / "source",
    )  # fmt: skip
    with Session(small) as session:
        assert session.run()
    for rank in range(2):
        (tmp_path / f"of-rank-{rank}").write_bytes(
            (tmp_path / "source" / "last.safetensors").read_bytes()
        )
    tuned = dataclasses.replace(small, out=tmp_path / "tuned")
    assert run_ranks(2, tune_and_go_on, tuned, tmp_path) == [2, 2]
