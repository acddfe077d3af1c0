"""The speed of the step alone: what is timed, and that measuring it leaves no trace in a run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.loader import Batch
from tests.trainer.conftest import MadeFeed, make_batch
from trainer.ceiling import StepClock, first_batch, measure_ceiling, time_steps
from trainer.checkpoint import load_checkpoint
from trainer.config import RunConfig
from trainer.loop import Trainer
from trainer.model import AlexNet
from trainer.presets import find_preset
from trainer.session import Session


class Clock:
    """time.perf_counter, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("trainer.ceiling.time.perf_counter", lambda: self.now)


def small_trainer() -> Trainer:
    preset = find_preset("paper")
    model = AlexNet(preset, 3, 1 / 32)
    model.initialise(0)
    return Trainer(model=model, preset=preset, steps_per_epoch=9, seed=0, precision="fp32")


def stepping(
    trainer: Trainer, clock: Clock, seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> list[Batch]:
    """Has steps take the seconds of the list, then its last; returns the list of their batches."""
    seen: list[Batch] = []

    def step(batch: Batch) -> torch.Tensor:
        clock.now += seconds[min(len(seen), len(seconds) - 1)]
        seen.append(batch)
        return torch.zeros(())

    monkeypatch.setattr(trainer, "train_step", step)
    return seen


def test_each_step_is_timed_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, trainer = Clock(monkeypatch), small_trainer()
    stepping(trainer, clock, [1.0, 0.25, 0.5], monkeypatch)
    times = time_steps(trainer, [make_batch(4, 3, i) for i in range(3)])
    assert times.step_seconds == pytest.approx((1.0, 0.25, 0.5))
    assert times.seconds == times.issued_seconds == pytest.approx(1.75)


def test_the_ceiling_is_of_the_median_step_on_one_batch_after_warming_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first step, which allocates, and a hiccup of the machine do not count."""
    clock, trainer, batch = Clock(monkeypatch), small_trainer(), make_batch(4, 3)
    seen = stepping(trainer, clock, [0.5, 0.1, 0.1, 7.0, 0.1, 0.1, 0.1], monkeypatch)
    assert measure_ceiling(trainer, batch, seconds=3.0) == pytest.approx(40)
    assert len(seen) == 1 + 6 and all(each is batch for each in seen)


@pytest.mark.parametrize(("step_seconds", "num_steps"), [(60.0, 5), (0.5, 6), (1e-4, 300)])
def test_slow_steps_are_few_and_fast_ones_bounded(
    step_seconds: float, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, trainer = Clock(monkeypatch), small_trainer()
    seen = stepping(trainer, clock, [step_seconds], monkeypatch)
    assert measure_ceiling(trainer, make_batch(4, 3), seconds=3.0) == pytest.approx(
        4 / step_seconds
    )
    assert len(seen) == 1 + num_steps


def test_the_steps_are_whole_ones_of_training_each_the_same_of_its_schedule() -> None:
    measured, trained, batch = small_trainer(), small_trainer(), make_batch(4, 3)
    measured.step = trained.step = 2
    time_steps(measured, [batch] * 3)
    for _ in range(3):
        trained.train_step(batch)
        trained.step = 2
    assert measured.step == 2
    torch.testing.assert_close(
        measured.model.state_dict(), trained.model.state_dict(), rtol=0, atol=0
    )


def test_looking_at_the_first_batch_leaves_the_feed_where_it_was() -> None:
    class Positioned(MadeFeed):
        dataset: Any = None
        backend = description = "made"

        def set_epoch(self, epoch: int) -> None:
            self.epoch, self.step = epoch, 0

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.epoch, self.step = state["epoch"], state["step"]

    feed = Positioned(5)
    feed.epoch, feed.step = 2, 3
    seen = first_batch(feed)
    assert feed.state_dict() == {"epoch": 2, "step": 3}
    following = next(iter(feed))
    assert torch.equal(seen.images, following.images)
    assert seen.images.data_ptr() != following.images.data_ptr()


def run(shards: Path, out: Path, *, fed_ratio: bool, limit: int | None = None) -> None:
    config = RunConfig(
        shards=shards, out=out, epochs=2, batch_size=8, width=1 / 32, device="cpu",
        backend="numpy", fed_ratio=fed_ratio, limit_steps=limit,
    )  # fmt: skip
    with Session(config) as session:
        assert session.run()


def test_a_run_that_measures_it_is_the_same_run_and_tells_its_fed_ratio(
    shard_folder: Path, tmp_path: Path
) -> None:
    """Measured anew where it is taken up; every report has the ratio to it, as every sink has."""
    run(shard_folder, tmp_path / "plain", fed_ratio=False)
    run(shard_folder, tmp_path / "fed", fed_ratio=True, limit=6)
    run(shard_folder, tmp_path / "fed", fed_ratio=True)
    plain = load_checkpoint(tmp_path / "plain/last.safetensors")
    fed = load_checkpoint(tmp_path / "fed/last.safetensors")
    torch.testing.assert_close(plain.model, fed.model, rtol=0, atol=0)
    torch.testing.assert_close(plain.momentum, fed.momentum, rtol=0, atol=0)
    assert plain.loader == fed.loader
    reports = {
        name: [
            json.loads(line)
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("plain", "fed")
    }
    assert [report["fed_ratio"] for report in reports["plain"]] == [None, None]
    assert all(0 < report["fed_ratio"] < 10 for report in reports["fed"])
    head, *rows = (tmp_path / "fed/metrics.csv").read_text().splitlines()
    column = head.split(",").index("fed_ratio")
    assert [float(row.split(",")[column]) for row in rows] == [
        report["fed_ratio"] for report in reports["fed"]
    ]


def test_the_ratio_is_the_speed_of_training_over_the_ceiling(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.parts.measure_ceiling", lambda trainer, batch: 1234.5)
    run(shard_folder, tmp_path / "run", fed_ratio=True)
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        report = json.loads(line)
        assert report["fed_ratio"] == report["images_per_second"] / 1234.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_steps_are_timed_on_the_device() -> None:
    """Their sum is no more than the host's time for all, and the host is done before them."""
    device = torch.device("cuda", 0)
    preset = find_preset("modern")
    model = AlexNet(preset, 1000, 1.0)
    model.initialise(0)
    trainer = Trainer(
        model=model.place(device), preset=preset, steps_per_epoch=9, seed=0, precision="bf16"
    )
    made = make_batch(512, 1000)
    batch = replace(
        made,
        images=made.images.to(device).half(),
        labels=made.labels.to(device),
        crop=made.crop.to(device),
    )
    speed = measure_ceiling(trainer, batch, seconds=1.0)
    times = time_steps(trainer, [batch] * 20)
    assert len(times.step_seconds) == 20 and sum(times.step_seconds) <= times.seconds * 1.01
    assert times.issued_seconds <= times.seconds
    assert 512 / max(times.step_seconds) <= speed * 2 and speed > 0


def test_a_clock_without_marks_has_seen_nothing() -> None:
    assert StepClock(torch.device("cpu")).seconds() == ()
