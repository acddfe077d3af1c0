"""Checkpoints are written beside the steps: whole, in order, and what is lost is told."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.ranks import run_ranks
from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trainer.checkpoint_writer import BEST_NAME, LAST_NAME, CheckpointWriter, epoch_name
from trainer.collectives import Group
from trainer.config import RunConfig
from trainer.loop import Trainer
from trainer.session import Session

CPU = torch.device("cpu")
PATIENCE_SECONDS = 60.0


def checkpoint(value: float = 1.0) -> Checkpoint:
    return Checkpoint(
        model={"a": torch.full((5,), value)}, momentum={"a": torch.zeros(5)}, config={},
        progress={"step": 3, "best": 0.25}, schedule={}, loader={}, made_by={},
    )  # fmt: skip


def writer(folder: Path, every_minutes: float | None = None) -> CheckpointWriter:
    return CheckpointWriter(folder, Group(), CPU, every_minutes)


class Gate:
    """Stands in for save_checkpoint: notes that it began, and writes once it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()
        monkeypatch.setattr("trainer.checkpoint_writer.save_checkpoint", self.save)

    def save(self, path: Path, saved: Checkpoint) -> None:
        self.begun.set()
        assert self.opened.wait(PATIENCE_SECONDS), "training waited for its checkpoint"
        save_checkpoint(path, saved)


def test_what_is_written_is_the_moment_of_begin_whatever_becomes_of_the_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, mine, saved = Gate(monkeypatch), writer(tmp_path), checkpoint(1.0)
    mine.begin([LAST_NAME], saved)
    assert gate.begun.wait(PATIENCE_SECONDS) and not (tmp_path / LAST_NAME).exists()
    saved.model["a"].fill_(7.0)
    gate.opened.set()
    assert mine.settle() == ()
    assert torch.equal(load_checkpoint(tmp_path / LAST_NAME).model["a"], torch.ones(5))
    mine.close()


def test_training_goes_on_while_a_checkpoint_is_written(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint is finished only after two steps that follow it were made."""
    gate, original = Gate(monkeypatch), Trainer.train_step

    def opening(self: Trainer, batch: Any) -> Any:
        loss = original(self, batch)
        if self.step == 6:  # of four an epoch
            assert gate.begun.is_set() and not (tmp_path / LAST_NAME).exists()
            gate.opened.set()
        return loss

    monkeypatch.setattr(Trainer, "train_step", opening)
    with Session(small(shard_folder, tmp_path)) as session:
        assert session.run()
    assert load_checkpoint(tmp_path / LAST_NAME).progress["step"] == 8


def small(shards: Path, out: Path, **options: Any) -> RunConfig:
    return RunConfig(
        shards=shards, out=out, epochs=2, batch_size=8, width=1 / 32, backend="numpy",
        device="cpu", **options,
    )  # fmt: skip


def failing(*names: str) -> Callable[[Path, Checkpoint], None]:
    """save_checkpoint on a disk that has no room for these files."""

    def save(path: Path, saved: Checkpoint) -> None:
        if path.name in names:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save_checkpoint(path, saved)

    return save


def test_one_that_is_lost_is_told_and_the_later_ones_do_not_speak_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.checkpoint_writer.save_checkpoint", failing(BEST_NAME))
    mine = writer(tmp_path)
    mine.begin([BEST_NAME, LAST_NAME, epoch_name(2)], checkpoint(), {"best": 0.5})
    assert mine.settle() == (BEST_NAME,)
    assert "best.safetensors: No space left on device; training goes on" in capsys.readouterr().err
    for name in (LAST_NAME, "epoch-0002.safetensors"):
        assert load_checkpoint(tmp_path / name).progress == {"step": 3, "best": 0.5}
    mine.begin([LAST_NAME], checkpoint())
    assert mine.settle() == () and mine.settle() == ()
    assert load_checkpoint(tmp_path / LAST_NAME).progress["best"] == 0.25
    mine.close()


def test_the_best_that_was_lost_is_not_taken_for_the_best_of_the_run(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoint_writer.save_checkpoint", failing(BEST_NAME))
        with Session(small(shard_folder, tmp_path, limit_steps=5)) as session:
            assert session.run() and session.best_top1_error == 2.0
    assert load_checkpoint(tmp_path / LAST_NAME).progress["best_top1_error"] == 2.0
    with Session(small(shard_folder, tmp_path)) as session:
        assert session.run()
    assert load_checkpoint(tmp_path / BEST_NAME).progress["epoch"] == 2


def test_a_mistake_of_this_program_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path, saved: Checkpoint) -> None:
        raise KeyError("wrong")

    monkeypatch.setattr("trainer.checkpoint_writer.save_checkpoint", wrong)
    mine = writer(tmp_path)
    mine.begin([LAST_NAME], checkpoint())
    with pytest.raises(KeyError, match="wrong"):
        mine.settle()
    mine.close()


def test_minutes_are_counted_from_the_last_beginning_and_not_while_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("trainer.checkpoint_writer.time.monotonic", lambda: now[0])
    gate, mine, never = Gate(monkeypatch), writer(tmp_path, 2.0), writer(tmp_path)
    due = []
    for seconds in (119.0, 1.0):
        now[0] += seconds
        due.append(mine.is_due)
    assert not never.is_due
    mine.begin([LAST_NAME], checkpoint())
    now[0] += 500.0
    due.append(mine.is_due)
    gate.opened.set()
    mine.settle()
    due.append(mine.is_due)
    assert due == [False, True, False, True]
    mine.close()
    never.close()


def test_kept_epochs_and_minutes_save_what_a_run_resumes_from(
    shard_folder: Path, tmp_path: Path
) -> None:
    """Saved after every step, and stopped as by a kill: its end is that of the run undisturbed."""
    whole = small(shard_folder, tmp_path / "whole", save_every_epochs=1)
    with Session(whole) as session:
        assert session.run()
    kept = sorted(path.name for path in (tmp_path / "whole").glob("epoch-*"))
    assert kept == ["epoch-0001.safetensors", "epoch-0002.safetensors"]
    asked = small(shard_folder, tmp_path / "cut", save_every_minutes=1e-9)
    sessions: list[Session] = []

    class Killed(Exception):
        pass

    def kill(self: Trainer, batch: Any) -> Any:
        if self.step >= 5:  # none is begun while one is in flight: so that step 6 is saved
            sessions[0].writer.settle()
        if self.step == 6:
            raise Killed
        return original(self, batch)

    original = Trainer.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", kill)
        with pytest.raises(Killed), Session(asked) as session:
            sessions.append(session)
            session.run()
    assert load_checkpoint(tmp_path / "cut" / LAST_NAME).progress["step"] == 6
    with Session(asked) as session:
        assert session.trainer.step == 6 and session.run()
    first, second = (load_checkpoint(tmp_path / run / LAST_NAME) for run in ("whole", "cut"))
    for part in ("model", "momentum"):
        torch.testing.assert_close(
            getattr(first, part), getattr(second, part), rtol=0, atol=0
        )


def saved_by_ranks(folder: str) -> list[tuple[str, ...]]:
    """What each rank hears of a save that is lost, and of one that is not."""
    import torch.distributed as dist

    heard = []
    for place in (Path(folder) / "absent", Path(folder)):
        mine = CheckpointWriter(place, Group(dist.group.WORLD), CPU, 1e-9)
        mine.begin([BEST_NAME, LAST_NAME], checkpoint(float(dist.get_rank())))
        heard.append(mine.settle())
        assert mine.is_due == (dist.get_rank() == 0)
        mine.close()
    return heard


def test_every_rank_hears_of_a_loss_and_the_first_one_writes(tmp_path: Path) -> None:
    expected = [(BEST_NAME, LAST_NAME), ()]
    assert run_ranks(2, saved_by_ranks, str(tmp_path)) == [expected, expected]
    assert torch.equal(load_checkpoint(tmp_path / LAST_NAME).model["a"], torch.zeros(5))
