"""Finished runs, for the commands that take checkpoints; only to be read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.config import RunConfig
from trainer.session import Session


@pytest.fixture(scope="session")
def run_folder(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    return train(shard_folder, tmp_path_factory.mktemp("run") / "modern", width=1 / 32)


@pytest.fixture(scope="session")
def other_folder(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another finished run, of another preset and width."""
    folder = tmp_path_factory.mktemp("run") / "paper"
    return train(shard_folder, folder, preset="paper", width=1 / 16)


@pytest.fixture(scope="session")
def kriz2012_folder(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the network that has every kind of layer."""
    folder = tmp_path_factory.mktemp("run") / "kriz2012"
    return train(shard_folder, folder, preset="kriz2012", width=1 / 32)


@pytest.fixture(scope="session")
def diverged(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a weight that is no number, as no run writes it."""
    checkpoint = load_checkpoint(run_folder / "last.safetensors")
    checkpoint.tested["fc7.weight"][0, 0] = torch.nan
    path = tmp_path_factory.mktemp("diverged") / "nan.safetensors"
    save_checkpoint(path, checkpoint)
    return path


def train(shards: Path, folder: Path, **options: Any) -> Path:
    """Trains for an epoch; returns the run folder."""
    config = RunConfig(
        shards=shards, epochs=1, backend="numpy", device="cpu", out=folder, **options
    )
    with Session(config) as session:
        session.run()
    return folder
