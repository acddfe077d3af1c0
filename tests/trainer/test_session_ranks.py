"""Whole runs of two ranks on tiny shards: each mode is the run of one process, and its resume."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.loader import Batch, Loader
from tests.conftest import compute_statistics, prepare_here, write_source
from tests.trainer.ranks import run_ranks
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.config import RunConfig
from trainer.parallel import MODES
from trainer.session import Session
from trainer.world import World

NUM_RANKS, NUM_STEPS = 2, 9  # 39 images in batches of 4
RATE = ("learning_rate=0.1",)
# Few: each may turn a rounding of float32 into another maximum of a pool, and that is no error.
OF_FOUR_STEPS: dict[str, Any] = {"batch_size": 8, "weight_report": 1}


def config(shards: Path, out: Path, **options: Any) -> RunConfig:
    small: dict[str, Any] = {
        "epochs": 1, "batch_size": 4, "width": 1 / 32, "backend": "numpy", "device": "cpu",
        "preset": "kriz2012", "ema": 0.5,
        "settings": (*RATE, "init_std=0.018", "deep_init_std=0.018"),
    }  # fmt: skip
    return RunConfig(**{"shards": shards, "out": out, **small, **options})


def here() -> World:
    """Of this rank, or of a process alone."""
    cpu = torch.device("cpu")
    if not dist.is_initialized():
        return World(device=cpu)
    size = dist.get_world_size()
    return World(device=cpu, rank=dist.get_rank(), size=size, local_size=size)


def train(asked: RunConfig) -> bool:
    with Session(asked, here()) as session:
        return session.run()


def train_all(asked: list[RunConfig]) -> list[bool]:
    return [train(one) for one in asked]


def last(folder: Path) -> Checkpoint:
    return load_checkpoint(folder / "last.safetensors")


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_close_runs(one: Path, other: Path) -> None:
    """The same weights, momentum, averages and metrics up to the order of float32 sums."""
    first, second = last(one), last(other)
    for part in ("model", "momentum", "ema"):
        torch.testing.assert_close(
            getattr(first, part), getattr(second, part), rtol=1e-3, atol=1e-5
        )
    assert first.loader == second.loader and first.schedule == second.schedule
    assert first.config == second.config
    for ours, theirs in zip(metrics(one), metrics(other), strict=True):
        for key in ("step", "num_val_images", "top1_error", "top5_error"):
            assert ours[key] == theirs[key]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
        assert ours["weights"].keys() == theirs["weights"].keys()
        for name, change in ours["weights"].items():
            assert change == pytest.approx(theirs["weights"][name], rel=1e-2, abs=1e-6)


@pytest.fixture(scope="module")
def alone(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process; its weights have moved far from the first ones."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert train(config(shard_folder, folder, **OF_FOUR_STEPS))
    change = metrics(folder)[0]["weights"]["conv2.weight"]
    assert change["mean_abs_step"] > 1e-4
    assert metrics(folder)[0]["num_val_images"] == 15
    return folder


def test_every_mode_is_the_run_of_one_process(
    alone: Path, shard_folder: Path, tmp_path: Path
) -> None:
    cases = {
        f"{mode}-{micro}": config(
            shard_folder, tmp_path / f"{mode}-{micro}", parallel=mode, micro_batch=micro,
            **OF_FOUR_STEPS,
        )
        for mode in MODES
        for micro in (None, 1)
    }  # fmt: skip
    for results in run_ranks(NUM_RANKS, train_all, list(cases.values())):
        assert all(results)
    for name in cases:
        assert_close_runs(alone, tmp_path / name)


def test_a_run_goes_on_in_any_other_mode_and_in_one_process(
    alone: Path, shard_folder: Path, tmp_path: Path
) -> None:
    stops = {"columns": 1, "data": 2, "hybrid": 3}
    asked = [
        config(shard_folder, tmp_path / "run", parallel=mode, limit_steps=step, **OF_FOUR_STEPS)
        for mode, step in stops.items()
    ]
    for results in run_ranks(NUM_RANKS, train_all, asked):
        assert all(results)
    assert last(tmp_path / "run").progress["step"] == 3
    assert train(config(shard_folder, tmp_path / "run", **OF_FOUR_STEPS))
    assert_close_runs(alone, tmp_path / "run")


def weights_and_bytes(asked: list[RunConfig]) -> list[tuple[dict[str, torch.Tensor], int]]:
    """Of each run: what it trained, and what this rank sent."""
    results = []
    for one in asked:
        with Session(one, here()) as session:
            assert session.run()
            results.append((session.model.state_dict(), session.layout.bytes_sent))
    return results


def test_gradients_travel_in_half_the_width_where_that_was_asked_for(
    shard_folder: Path, tmp_path: Path
) -> None:
    """The weights are nearly, not just, those of whole gradients, and the same on all ranks."""
    asked = [
        config(shard_folder, tmp_path / wire, parallel="data", wire=wire, limit_steps=4)
        for wire in ("fp32", "bf16")
    ]
    found = run_ranks(NUM_RANKS, weights_and_bytes, asked)
    for (exact, exact_bytes), (rounded, rounded_bytes) in found:
        assert 0.5 <= rounded_bytes / exact_bytes < 0.51
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.01)
        assert not torch.equal(rounded["conv2.weight"], exact["conv2.weight"])
    for name, value in found[0][1][0].items():
        assert torch.equal(value, found[1][1][0][name])


PAIRS = [(one, other) for one in ("alone", *MODES) for other in ("alone", *MODES)]


@pytest.mark.slow
def test_a_checkpoint_of_any_mode_is_resumed_in_any_other(
    alone: Path, shard_folder: Path, tmp_path: Path
) -> None:
    """All pairs, one process among the modes: the end is that of one process."""

    def part(first: str, second: str, *, begin: bool) -> RunConfig:
        mode = first if begin else second
        return config(
            shard_folder, tmp_path / f"{first}-{second}", **OF_FOUR_STEPS,
            parallel="auto" if mode == "alone" else mode, limit_steps=2 if begin else None,
        )  # fmt: skip

    for begin in (True, False):
        shared = []
        for first, second in PAIRS:
            one = part(first, second, begin=begin)
            if (first if begin else second) == "alone":
                assert train(one)
            else:
                shared.append(one)
        for results in run_ranks(NUM_RANKS, train_all, shared):
            assert all(results)
    for first, second in PAIRS:
        assert_close_runs(alone, tmp_path / f"{first}-{second}")


def train_with_a_signal(asked: RunConfig, num_batches: int) -> bool:
    """Sends SIGTERM to rank 1 alone while the n-th batch is on its way to the network."""
    original = Loader.__iter__

    def counted(self: Loader) -> Iterator[Batch]:
        for number, batch in enumerate(original(self), 1):
            if number == num_batches and self.config.training and dist.get_rank() == 1:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "__iter__", counted)
        return train(asked)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_nothing_is_lost(
    shard_folder: Path, tmp_path: Path
) -> None:
    """Bit-equal after the resume, batch norm's statistics included."""
    whole, cut = (
        config(shard_folder, tmp_path / name, parallel="data", preset="modern", settings=RATE)
        for name in ("whole", "cut")
    )
    assert run_ranks(NUM_RANKS, train_all, [whole]) == [[True], [True]]
    assert run_ranks(NUM_RANKS, train_with_a_signal, cut, 3) == [False, False]
    assert last(tmp_path / "cut").progress["step"] == 4  # the wish of step 3, granted in step 4
    assert run_ranks(NUM_RANKS, train_all, [cut]) == [[True], [True]]
    first, second = last(tmp_path / "whole"), last(tmp_path / "cut")
    for part in ("model", "momentum", "ema"):
        torch.testing.assert_close(
            getattr(first, part), getattr(second, part), rtol=0, atol=0
        )


def test_a_rank_without_any_image_to_validate_counts_with_the_others(tmp_path: Path) -> None:
    """Three images, four ranks: the first one's part is empty in every mode."""
    source = write_source(tmp_path / "source", train_per_class=4, val_per_class=1)
    shards = tmp_path / "shards"
    prepare_here(source, shards)
    compute_statistics(shards)
    options: dict[str, Any] = {"batch_size": 4, "weight_report": 1}
    asked = [config(shards, tmp_path / mode, parallel=mode, **options) for mode in MODES]
    for results in run_ranks(4, train_all, asked):
        assert all(results)
    assert train(config(shards, tmp_path / "alone", **options))
    for mode in MODES:
        assert metrics(tmp_path / mode)[0]["num_val_images"] == 3
        assert_close_runs(tmp_path / "alone", tmp_path / mode)


def refusal(asked: RunConfig) -> str:
    try:
        train(asked)
    except ValueError as error:
        return str(error)
    return ""


def refusals(asked: list[RunConfig]) -> list[str]:
    return [refusal(one) for one in asked]


def refused_by_ranks(asked: RunConfig) -> str:
    original = Loader.__iter__

    def burst(self: Loader) -> Iterator[Batch]:
        for number, batch in enumerate(original(self), 1):
            if number == 3 and self.config.training and dist.get_rank() == 1:
                batch = replace(batch, images=batch.images * float("inf"))
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "__iter__", burst)
        return refusal(asked)


def test_a_loss_that_is_not_finite_names_step_and_rank(shard_folder: Path, tmp_path: Path) -> None:
    asked = config(shard_folder, tmp_path, parallel="data")
    for message in run_ranks(NUM_RANKS, refused_by_ranks, asked):
        assert (
            "the loss of step 3 is nan on rank 1; it began in the images on rank 1; no checkpoint "
            "was written yet"
        ) in message


REFUSED: dict[str, dict[str, Any]] = {
    "world size 2 does not divide the global batch 5": {"batch_size": 5},
    "--overfit trains in one process": {"overfit": 8},
    "hybrid does not go with --precision fp16": {"precision": "fp16", "parallel": "hybrid"},
}


def test_what_ranks_cannot_do_is_refused_by_each(shard_folder: Path, tmp_path: Path) -> None:
    asked = [
        config(shard_folder, tmp_path / str(number), **options)
        for number, options in enumerate(REFUSED.values())
    ]
    for found in run_ranks(NUM_RANKS, refusals, asked):
        for message, expected in zip(found, REFUSED, strict=True):
            assert expected in message
