"""Whole runs on tiny shards: stopped and resumed, refused, diverged, finished."""

import dataclasses
import errno
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.calibrate import Choice
from pipeline.loader import Batch, Loader
from tests.conftest import compute_statistics, prepare_here, write_source
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.checkpoint_writer import CheckpointWriter
from trainer.config import RunConfig
from trainer.session import Session
from trainer.world import Wish


def config(shards: Path, out: Path, **options: Any) -> RunConfig:
    small: dict[str, Any] = {"epochs": 2, "batch_size": 8, "width": 1 / 32, "backend": "numpy"}
    return RunConfig(**{"shards": shards, "out": out, "device": "cpu", **small, **options})


def train(shards: Path, out: Path, **options: Any) -> bool:
    with Session(config(shards, out, **options)) as session:
        return session.run()


def last(folder: Path) -> Checkpoint:
    return load_checkpoint(folder / "last.safetensors")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without what a clock measured."""
    return [
        {key: value for key, value in line.items() if "second" not in key} for line in lines
    ]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-equal weights, statistics and momentum; equal position, schedule and metrics."""
    first, second = last(one), last(other)
    for part in ("model", "momentum", "ema"):
        ours, theirs = getattr(first, part), getattr(second, part)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
    assert first.schedule == second.schedule and first.loader == second.loader
    assert first.arithmetic == second.arithmetic
    assert timeless(metrics(one)) == timeless(metrics(other))


@pytest.fixture(scope="module", params=["modern", "paper", "kriz2012"])
def undisturbed(
    request: pytest.FixtureRequest, shard_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A preset and the folder of a finished run of it: two epochs of four steps."""
    preset = str(request.param)
    folder = tmp_path_factory.mktemp("runs") / preset
    assert train(shard_folder, folder, preset=preset)
    return preset, folder


def stop_after(monkeypatch: pytest.MonkeyPatch, num_batches: int) -> None:
    """Sends SIGTERM while the n-th batch is on its way to the network."""
    original, seen = Loader.__iter__, 0

    def counted(self: Loader) -> Iterator[Batch]:
        nonlocal seen
        for batch in original(self):
            seen += self.config.training
            if seen == num_batches and self.config.training:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Loader, "__iter__", counted)


@pytest.mark.parametrize("num_steps", [1, 3, 4, 5, 7])
def test_a_run_stopped_anywhere_ends_bit_equal_to_one_undisturbed(
    num_steps: int,
    undisturbed: tuple[str, Path],
    shard_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preset, whole = undisturbed
    with monkeypatch.context() as patch:
        stop_after(patch, num_steps)
        assert not train(shard_folder, tmp_path, preset=preset)
    stopped = last(tmp_path)
    assert stopped.progress["step"] == num_steps
    assert train(shard_folder, tmp_path, preset=preset)
    assert_same_run(tmp_path, whole)


def test_a_second_signal_does_not_lose_the_checkpoint_of_the_stop(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while that is written; unheeded by the session it would be an error here."""

    def settle(self: CheckpointWriter) -> tuple[str, ...]:
        if self._names:
            signal.raise_signal(signal.SIGUSR1)
        return original(self)

    def killed(number: int, frame: object) -> None:
        raise AssertionError("the signal would have ended the process")

    original, before = CheckpointWriter.settle, signal.signal(signal.SIGUSR1, killed)
    monkeypatch.setattr(CheckpointWriter, "settle", settle)
    stop_after(monkeypatch, 2)
    try:
        assert not train(shard_folder, tmp_path)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert last(tmp_path).progress["step"] == 2


def test_a_stop_is_heard_between_epochs_of_one_step(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 2)
    assert not train(shard_folder, tmp_path, batch_size=32, epochs=4)
    assert last(tmp_path).progress["step"] == 2


def test_a_stop_asked_for_before_the_first_step_is_saved_and_resumed_to_the_same_run(
    undisturbed: tuple[str, Path], shard_folder: Path, tmp_path: Path
) -> None:
    preset, whole = undisturbed
    with Session(config(shard_folder, tmp_path, preset=preset)) as session:
        assert not session.run(lambda: True)
    assert last(tmp_path).progress["step"] == 0
    assert train(shard_folder, tmp_path, preset=preset)
    assert_same_run(tmp_path, whole)


def test_a_stop_whose_checkpoint_is_lost_says_so(
    shard_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainer.checkpoint.whole_file", full)
    stop_after(monkeypatch, 2)
    assert not train(shard_folder, tmp_path)
    assert "stopped after step 2, which was not saved; the same" in capsys.readouterr().out


EVENTS = (
    "epochs=3",
    "drop_epochs=[1]",
    "lighting_off_epoch=1",
    'layer_rates=[[1, "conv1", 0.1], [2, "conv1", 0.0]]',
)


def test_rates_lighting_and_frozen_layers_of_2012_survive_a_stop_bit_by_bit(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in each epoch: lit, dark with a slower conv1, and with conv1 frozen."""
    options: dict[str, Any] = {"preset": "kriz2012", "epochs": None, "settings": EVENTS}
    assert train(shard_folder, tmp_path / "whole", **options)
    frozen = {}
    for num_steps in (2, 4, 3):  # of four an epoch
        with monkeypatch.context() as patch:
            stop_after(patch, num_steps)
            assert not train(shard_folder, tmp_path / "cut", **options)
        frozen = last(tmp_path / "cut").model
    assert train(shard_folder, tmp_path / "cut", **options)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    model = last(tmp_path / "cut").model
    assert torch.equal(model["conv1.weight"], frozen["conv1.weight"])
    assert not torch.equal(model["conv2.weight"], frozen["conv2.weight"])
    rates = [line["learning_rate"] for line in metrics(tmp_path / "cut")]
    assert rates == pytest.approx([0.01 / 16, 0.001 / 16, 0.001 / 16])


def test_a_run_killed_after_an_epoch_drops_the_metrics_past_its_checkpoint(
    undisturbed: tuple[str, Path], shard_folder: Path, tmp_path: Path
) -> None:
    """As left by a kill between the line of epoch 2 and its checkpoint, and in the next line."""
    preset, whole = undisturbed
    train(shard_folder, tmp_path, preset=preset)
    with Session(config(shard_folder, tmp_path / "one", preset=preset)) as session:
        session._run_epoch(lambda: Wish.NOTHING)
    (tmp_path / "last.safetensors").write_bytes((tmp_path / "one/last.safetensors").read_bytes())
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "step": 1')
    assert train(shard_folder, tmp_path, preset=preset)
    assert_same_run(tmp_path, whole)


def test_metrics_and_checkpoints_of_a_run(undisturbed: tuple[str, Path]) -> None:
    preset, folder = undisturbed
    lines = metrics(folder)
    assert [(line["epoch"], line["step"], line["num_val_images"]) for line in lines] == [
        (1, 4, 15),
        (2, 8, 15),
    ]
    checkpoint, best = last(folder), load_checkpoint(folder / "best.safetensors")
    assert checkpoint.config == json.loads((folder / "config.json").read_bytes())
    assert checkpoint.config["preset"]["name"] == preset
    assert checkpoint.config["preset"]["training"]["batch_size"] == 8
    assert checkpoint.progress["epoch"] == 2
    errors = [line["top1_error"] for line in lines]
    assert best.progress["best_top1_error"] == min(errors)
    assert best.progress["epoch"] == errors.index(min(errors)) + 1


def test_a_finished_run_says_so(
    undisturbed: tuple[str, Path], shard_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset, folder = undisturbed
    before = (folder / "last.safetensors").read_bytes()
    assert train(shard_folder, folder, preset=preset)
    assert "all 2 epochs are done" in capsys.readouterr().out
    assert (folder / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"epochs": 3}, "preset.training.epochs is 2, asked for 3"),
        ({"batch_size": 4}, "preset.training.batch_size is 8, asked for 4"),
        ({"seed": 1}, "seed is 0, asked for 1"),
        ({"settings": ("momentum=0.5",)}, "preset.training.momentum is 0.9, asked for 0.5"),
        ({"width": 1 / 16}, "width is 0.03125, asked for 0.0625"),
    ],
)
def test_a_folder_of_another_configuration_is_refused_and_kept(
    options: dict[str, Any], difference: str, undisturbed: tuple[str, Path], shard_folder: Path
) -> None:
    preset, folder = undisturbed
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=difference):
        train(shard_folder, folder, preset=preset, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_from_staged_shards_is_the_run_from_local_ones(
    undisturbed: tuple[str, Path], in_memory: Path, tmp_path: Path
) -> None:
    preset, folder = undisturbed
    assert train(in_memory, tmp_path / "run", preset=preset, stage_dir=tmp_path / "stage")
    assert_same_run(tmp_path / "run", folder)
    assert len(list((tmp_path / "stage").glob("*-train-*.tar"))) == 5
    assert list((tmp_path / "stage").glob("*-val-*.tar"))


def test_a_run_that_keeps_its_images_is_the_run_that_decodes_them_anew(
    undisturbed: tuple[str, Path],
    shard_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it stops, and goes on without: how images come about is not part of a run."""
    preset, folder = undisturbed
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert not train(shard_folder, tmp_path, preset=preset)
    assert train(shard_folder, tmp_path, preset=preset, resident="host")
    assert_same_run(tmp_path, folder)


def test_a_window_is_part_of_the_run(shard_folder: Path, tmp_path: Path) -> None:
    with Session(config(shard_folder, tmp_path, window=2)) as session:
        assert session.train_feed.state_dict()["window"] == 2
    with pytest.raises(ValueError, match="window is 2, asked for 'all'"):
        train(shard_folder, tmp_path)


def test_the_mean_in_the_network_is_that_of_the_shards(
    undisturbed: tuple[str, Path], shard_folder: Path
) -> None:
    import numpy as np

    preset, folder = undisturbed
    mean = last(folder).model["normalise.mean"].numpy()
    image = np.load(shard_folder / "mean.npy")
    expected = image.mean((0, 1), np.float64) if preset == "modern" else image
    np.testing.assert_allclose(mean, expected, rtol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Loader.__iter__

    def burst(self: Loader) -> Iterator[Batch]:
        for step, batch in enumerate(original(self)):
            if self.config.training and self.epoch == 1 and step == 2:
                batch = dataclasses.replace(batch, images=batch.images * float("inf"))
            yield batch

    monkeypatch.setattr(Loader, "__iter__", burst)
    told = "step 7 is nan; it began in the images; .* still good. .* --set learning_rate=0.027, "
    with pytest.raises(ValueError, match=told):  # a third of what is asked for at batch 1,024
        train(shard_folder, tmp_path)
    assert last(tmp_path).progress["step"] == 4 and len(metrics(tmp_path)) == 1


def test_shards_without_pca_are_refused_with_the_command(
    shard_copy: Path, tmp_path: Path
) -> None:
    (shard_copy / "pca.json").unlink()
    with pytest.raises(ValueError, match="compute_pca"):
        train(shard_copy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pca_of_other_shards_is_refused_with_the_command(
    shard_copy: Path, tmp_path: Path
) -> None:
    path = shard_copy / "pca.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match="compute_pca"):
        train(shard_copy, tmp_path / "run")


def test_shards_without_val_are_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", val_per_class=0)
    for folder in (source / "val").iterdir():
        folder.rmdir()
    (source / "val").rmdir()
    prepare_here(source, tmp_path / "shards")
    compute_statistics(tmp_path / "shards")
    with pytest.raises(ValueError, match="no split 'val'"):
        train(tmp_path / "shards", tmp_path / "run")


def test_a_batch_larger_than_the_training_split_is_refused(
    shard_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--batch-size is 64, the training split has 39 images"):
        train(shard_folder, tmp_path, batch_size=64)


def test_a_truncated_checkpoint_is_refused_by_name(
    undisturbed: tuple[str, Path], shard_folder: Path, tmp_path: Path
) -> None:
    preset, folder = undisturbed
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "last.safetensors").write_bytes((folder / "last.safetensors").read_bytes()[:999])
    with pytest.raises(ValueError, match="last.safetensors is no whole safetensors file"):
        train(shard_folder, tmp_path, preset=preset)


def test_a_checkpoint_of_another_run_is_not_taken_up(shard_folder: Path, tmp_path: Path) -> None:
    """Copied in by hand: also where network, seed and shards are the same."""
    one, other = tmp_path / "one", tmp_path / "other"
    train(shard_folder, one, limit_steps=1)
    train(shard_folder, other, limit_steps=1, settings=("momentum=0.5",))
    (one / "last.safetensors").write_bytes((other / "last.safetensors").read_bytes())
    with pytest.raises(ValueError, match="another run: preset.training.momentum is 0.5, asked"):
        train(shard_folder, one)


def loaders_of(session: Session) -> tuple[Loader, Loader]:
    assert isinstance(session.train_feed, Loader) and isinstance(session.val_feed, Loader)
    return session.train_feed, session.val_feed


def test_both_loaders_feed_as_the_options_say(shard_folder: Path, tmp_path: Path) -> None:
    asked = config(shard_folder, tmp_path, loader_threads=3, prefetch=2, exact=True)
    with Session(asked) as session:
        for loader in loaders_of(session):
            assert (loader.settings.num_threads, loader.settings.depth) == (3, 2)
            assert loader.settings.hw_decoder_load == 0 and loader.config.exact


def test_validation_renders_with_what_was_measured_for_training(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def last(choices: Sequence[Choice], *others: object) -> Choice:
        measured.append(len(choices))
        return choices[-1]

    monkeypatch.setattr("pipeline.renderer.fastest", last)
    with Session(config(shard_folder, tmp_path, loader_threads=4, calibrate=True)) as session:
        assert [loader.settings.num_threads for loader in loaders_of(session)] == [2, 2]
        assert [loader.backend for loader in loaders_of(session)] == ["numpy", "numpy"]
    assert len(measured) == 2  # backends, threads and decoder load, then depth: of one loader


def test_a_checkpoint_tells_its_decoder(shard_folder: Path, tmp_path: Path) -> None:
    train(shard_folder, tmp_path / "run", epochs=1)
    checkpoint = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert checkpoint.made_by["backend"] in ("dali-cpu", "numpy")
    assert checkpoint.loader["hw_decoder_load"] is None  # of a GPU's decoder only
