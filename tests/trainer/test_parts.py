"""What a run's options come to: the same for a session and for whoever measures its step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.loader import Batch
from trainer.checkpoint import load_checkpoint
from trainer.collectives import Group
from trainer.config import RunConfig
from trainer.loop import Trainer
from trainer.parts import Parts, plan_parts
from trainer.session import Session
from trainer.world import World


def options(shards: Path, out: Path) -> RunConfig:
    return RunConfig(
        shards=shards, out=out, preset="paper", settings=("batch_size=64",), batch_size=8,
        width=1 / 32, device="cpu", backend="numpy", prefetch=2, seed=7, window=3,
    )  # fmt: skip


def test_the_parts_are_those_of_the_session(shard_folder: Path, tmp_path: Path) -> None:
    config = options(shard_folder, tmp_path / "run")
    with Session(config) as session:
        parts = plan_parts(config, World(device=session.device))
        assert parts.preset == session.preset and parts.mode_told == ""
        assert parts.preset.training.learning_rate == pytest.approx(0.01 / 8)
        torch.testing.assert_close(
            parts.model().state_dict(), session.model.state_dict(), rtol=0, atol=0
        )
        assert getattr(session.train_feed, "config") == parts.loader_config("train", training=True)


def test_the_loader_is_given_every_option_that_concerns_it(shard_folder: Path) -> None:
    alone = plan_parts(options(shard_folder, Path("nowhere")), World(device=torch.device("cpu")))
    second = replace(alone.world, rank=1, size=2)
    parts = replace(alone, world=second)
    loader = parts.loader_config("train", training=True)
    assert (loader.batch_size, loader.backend, loader.prefetch) == (8, "numpy", 2)
    assert (loader.seed, loader.window, loader.rank, loader.world_size) == (7, 3, 1, 2)
    assert loader.lighting == "variance"  # the paper's text


def test_only_columns_on_cpus_pass_bytes_on_to_each_other(shard_folder: Path) -> None:
    alone = plan_parts(options(shard_folder, Path("nowhere")), World(device=torch.device("cpu")))
    pair = Group()
    pair.size = 2
    columns = replace(alone, layout=replace(alone.layout, kernels=pair))
    for parts in (alone, columns):
        for training in (False, True):
            config = parts.loader_config("train", training=training)
            assert config.lighting_apart == (parts is columns and training)


def test_nothing_is_written_and_no_validation_split_is_needed(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = plan_parts(options(shard_folder, tmp_path / "run"), World(device=torch.device("cpu")))
    parts.trainer(parts.model(), 4)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def fastest(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The forms that are the fastest here, as if this were a GPU."""
    found = {"conv1": "unshuffled", "conv2": "dense"}
    monkeypatch.setattr(Parts, "chooses_forms", True)
    monkeypatch.setattr("trainer.parts.find_forms", lambda *_: dict(found))
    return found


def test_a_run_keeps_the_forms_it_began_with(
    shard_folder: Path,
    tmp_path: Path,
    fastest: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They round differently: also in its average, and in how fast its step alone is said to be.

    They are told once, and those that another GPU finds fastest are not even measured.
    """
    config = replace(options(shard_folder, tmp_path), ema=0.5, limit_steps=2, epochs=1)
    with Session(config) as session:
        assert session.run() and session.model.forms == fastest
    told = "convolutions: conv1 unshuffled, conv2 dense"
    assert f"{told}, as is fastest here\n" in capsys.readouterr().out

    def measure(*_: Any) -> None:
        pytest.fail("the forms of a run that goes on were measured")

    def rehearse(trainer: Trainer, batch: Batch) -> float:
        rehearsed.append(trainer.model.forms)
        return 1.0

    rehearsed: list[dict[str, str]] = []
    monkeypatch.setattr("trainer.parts.find_forms", measure)
    monkeypatch.setattr("trainer.parts.measure_ceiling", rehearse)
    with Session(replace(config, limit_steps=3, fed_ratio=True)) as session:
        assert session.run() and session.trainer.step == 3
        assert session.trainer.ema and session.trainer.ema.model.forms == fastest
        assert session.model.forms == fastest and rehearsed == [fastest]
    out = capsys.readouterr().out
    assert f"{told}, as the run began\n" in out and out.count("convolutions") == 1


@pytest.mark.usefixtures("fastest")
def test_forms_that_are_not_there_are_plain(shard_folder: Path, tmp_path: Path) -> None:
    config = replace(options(shard_folder, tmp_path), limit_steps=1)
    with Session(replace(config, compile=False)) as session:
        assert session.run() and session.model.forms == {}
    saved = load_checkpoint(tmp_path / "last.safetensors")
    with Session(config) as session:
        assert session.model.forms == {}  # as it began
        parts, model = session.parts, session.model
        saved.progress["forms"] = {"conv2": "of another version", "conv9": "plain"}
        assert parts.forms(model, saved) == {}
        saved.progress["forms"] = {"conv2": "dense", "conv9": "plain"}
        assert parts.forms(model, saved) == {"conv2": "dense"}
        del saved.progress["forms"]  # as before there were any
        assert parts.forms(model, saved) == {}


def test_on_a_cpu_all_forms_are_plain(shard_folder: Path, tmp_path: Path) -> None:
    """Those of a checkpoint that a GPU wrote too."""
    config = replace(options(shard_folder, tmp_path), limit_steps=1)
    with Session(config) as session:
        assert session.run() and session.parts.forms(session.model) == {}
        saved = load_checkpoint(tmp_path / "last.safetensors")
        saved.progress["forms"] = {"conv2": "dense"}
        assert session.parts.forms(session.model, saved) == {}
