"""What a run's options come to: the same for a session and for whoever measures its step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.config import RunConfig
from trainer.parts import plan_parts
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


def test_nothing_is_written_and_no_validation_split_is_needed(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = plan_parts(options(shard_folder, tmp_path / "run"), World(device=torch.device("cpu")))
    parts.trainer(parts.model(), 4)
    assert list(tmp_path.iterdir()) == []
