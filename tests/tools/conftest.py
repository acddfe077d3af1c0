"""Finished runs, for the commands that take checkpoints; only to be read."""

from pathlib import Path
from typing import Any

import pytest

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


def train(shards: Path, folder: Path, **options: Any) -> Path:
    """Trains for an epoch; returns the run folder."""
    config = RunConfig(
        shards=shards, epochs=1, backend="numpy", device="cpu", out=folder, **options
    )
    with Session(config) as session:
        session.run()
    return folder
