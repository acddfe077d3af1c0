"""What a run folder goes on from, and what happens to its files when the disk is full."""

import errno
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainer.ranks import run_ranks
from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trainer.collectives import Group
from trainer.config import RunConfig
from trainer.folder_lock import FolderLock
from trainer.parallel import ALONE
from trainer.run_folder import RunFolder
from trainer.session import Session
from trainer.sinks import MetricsFile
from trainer.world import Wish


def test_a_full_disk_stops_no_training_and_spoils_no_file(
    shard_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full from the end of the second epoch of three on."""
    asked = RunConfig(
        shards=shard_folder, out=tmp_path, epochs=3, batch_size=8, width=1 / 32, backend="numpy",
        device="cpu",
    )  # fmt: skip
    with Session(asked) as session:
        assert session._run_epoch(lambda: Wish.NOTHING)
        assert session.writer.settle() == ()
        before = (tmp_path / "last.safetensors").read_bytes()

        def full(*arguments: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "last.safetensors")

        with monkeypatch.context() as patch:
            patch.setattr("trainer.checkpoint.whole_file", full)
            with pytest.raises(OSError, match="run has ended, but its last checkpoint is not in"):
                session.run()
        assert session.epoch == 3
    assert (tmp_path / "last.safetensors").read_bytes() == before
    err = capsys.readouterr().err
    assert "last.safetensors not written: last.safetensors: No space left on device" in err
    with Session(asked) as session:  # with room again, the lost epochs are trained again
        assert session.epoch == 1 and session.run()
    assert load_checkpoint(tmp_path / "last.safetensors").progress["epoch"] == 3
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_line_that_the_disk_took_half_of_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            file.append({"step": 2})
    file.append({"step": 3})
    assert [line["step"] for line in file.read()] == [1, 3]


def test_a_run_notes_where_its_shards_lie_whatever_they_were_called(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again where it is taken up after they were moved."""
    for name in ("here", "moved"):
        (tmp_path / name).symlink_to(shard_folder)
        monkeypatch.chdir(tmp_path)
        asked = RunConfig(
            shards=Path(name), out=tmp_path / "run", epochs=1, batch_size=8, width=1 / 32,
            backend="numpy", device="cpu",
        )  # fmt: skip
        Session(asked).close()
        noted = json.loads((tmp_path / "run" / "shards.json").read_bytes())
        assert noted == {"folder": str(tmp_path / name)}


def save_run(folder: Path, step: int) -> None:
    checkpoint = Checkpoint(
        model={"fc8.bias": torch.zeros(3)}, momentum={}, config={"width": 0.5, "seed": 1},
        progress={"step": step}, schedule={}, loader={}, made_by={},
    )  # fmt: skip
    save_checkpoint(folder / "last.safetensors", checkpoint)


def test_a_run_goes_on_from_its_own_last_checkpoint(tmp_path: Path) -> None:
    records = RunFolder(tmp_path, ALONE.ranks, torch.device("cpu"))
    assert records.last_checkpoint({"width": 0.5, "seed": 1}) is None
    save_run(tmp_path, 7)
    found = records.last_checkpoint({"width": 0.5, "seed": 1})
    assert found and found.progress == {"step": 7}
    message = "last.safetensors is of another run: seed is 1, asked for 2. Put its own back, or"
    with pytest.raises(ValueError, match=message):
        records.last_checkpoint({"width": 0.5, "seed": 2})
    (tmp_path / "last.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="last.safetensors is no whole safetensors file"):
        records.last_checkpoint({"width": 0.5, "seed": 1})


def test_ranks_that_find_different_checkpoints_are_told(tmp_path: Path) -> None:
    """Of two ranks this is the second; the first, on another machine, has found none."""

    def all_gather(tensor: Tensor, axis: int) -> Tensor:
        return torch.cat([torch.tensor([-1]), tensor], axis)

    ranks: Any = SimpleNamespace(rank=1, size=2, all_gather=all_gather)
    records = RunFolder(tmp_path, ranks, torch.device("cpu"))
    assert records.last_checkpoint({"width": 0.5, "seed": 1}) is None
    save_run(tmp_path, 7)
    with pytest.raises(ValueError, match=r"for different processes, of steps \[-1, 7\]; give"):
        records.last_checkpoint({"width": 0.5, "seed": 1})


def step_found(folder: Path) -> int:
    """What a rank of two goes on from while a run that ends holds the folder.

    That run saves step 9 and lets go as soon as rank 1 waits for rank 0, in whatever exchange.
    """
    waits, description = folder / "rank-1-waits", {"width": 0.5, "seed": 1}
    group = Group(dist.group.WORLD)
    holder = FolderLock(folder)

    def end() -> None:
        while not waits.exists():
            time.sleep(0.01)
        save_run(folder, 9)
        holder.close()

    with pytest.MonkeyPatch.context() as patch:
        if group.rank == 0:
            holder.take()
        dist.barrier()
        if group.rank == 0:
            ending = threading.Thread(target=end)
            ending.start()
        else:
            for name in ("broadcast", "all_gather"):
                exchange = getattr(group, name)

                def noted(*arguments: Any, exchange: Any = exchange) -> Any:
                    waits.touch()
                    return exchange(*arguments)

                patch.setattr(group, name, noted)
        records = RunFolder(folder, group, torch.device("cpu"))
        records.claim(description, folder)
        found = records.last_checkpoint(description)
        records.close()
    if group.rank == 0:
        ending.join()
    assert found
    return int(found.progress["step"])


def test_no_rank_reads_the_checkpoint_of_a_run_that_still_saves(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"width": 0.5, "seed": 1}))
    save_run(tmp_path, 7)
    assert run_ranks(2, step_found, tmp_path) == [9, 9]
