"""An epoch of training: what is summed up, where it stops, and that it learns."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.loader import Batch
from tests.trainer.conftest import MadeFeed, make_batch
from trainer.evaluate import evaluate
from trainer.layers import random_source
from trainer.loop import Trainer
from trainer.metrics import Progress, Totals
from trainer.model import AlexNet
from trainer.optimizer import learning_rates
from trainer.override import override
from trainer.presets import KRIZ2012, MODERN, PAPER, PRESETS, Preset
from trainer.world import Wish

each = pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: str(preset.name))


def make_trainer(
    preset: Preset = MODERN,
    *,
    steps_per_epoch: int = 6,
    precision: str = "fp32",
    learning_rate: float = 0.001,
    **comforts: Any,
) -> Trainer:
    preset = override(preset, {"learning_rate": learning_rate})
    model = AlexNet(preset, 3, 1 / 16)
    model.initialise(0)
    mean = torch.full(model.normalise.mean.shape, 128.0)
    model.normalise.fill(mean, torch.full((3,), 60.0))
    return Trainer(
        model=model.place(torch.device("cpu")),
        preset=model.preset,
        steps_per_epoch=steps_per_epoch,
        seed=0,
        precision=precision,
        **comforts,
    )


def progress(num_steps: int) -> Progress:
    return Progress(title="epoch", num_steps=num_steps, first_step=0, terminal=False)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def never() -> Wish:
    return Wish.NOTHING


def at(trainer: Trainer, step: int, wish: Wish) -> Wish:
    return wish if trainer.step == step else Wish.NOTHING


@each
def test_totals_are_the_mean_loss_and_the_waits_of_the_epoch(preset: Preset) -> None:
    by_hand = make_trainer(preset)
    by_hand.model.train()
    losses = [by_hand.train_step(batch).item() for batch in MadeFeed(6)]
    trainer, totals = make_trainer(preset), Totals()
    assert trainer.train_epoch(MadeFeed(6), totals, progress(6), never)
    assert totals.loss == pytest.approx(sum(losses) / 6, rel=1e-12)
    assert (totals.num_images, totals.decode_wait_seconds) == (24, 3.0)
    assert (totals.data_wait_seconds, totals.read_wait_seconds) == (3.0, 0.0)
    assert trainer.step == 6 and totals.seconds > 0


@each
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_epoch_stopped_and_continued_is_the_epoch_undisturbed(
    preset: Preset, stop_after: int
) -> None:
    undisturbed, whole = make_trainer(preset), Totals()
    undisturbed.train_epoch(MadeFeed(6), whole, progress(6), never)
    trainer, totals, feed = make_trainer(preset), Totals(), MadeFeed(6)
    finished = trainer.train_epoch(
        feed, totals, progress(6), lambda: at(trainer, stop_after, Wish.STOP)
    )
    assert not finished and feed.state_dict() == {"epoch": 0, "step": stop_after}
    assert trainer.train_epoch(feed, totals, progress(6), never)
    assert feed.state_dict() == {"epoch": 1, "step": 0}
    assert totals.loss_sum == whole.loss_sum and totals.num_images == whole.num_images
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(tensor, trainer.model.state_dict()[name])


def test_a_stop_at_the_last_step_lets_the_epoch_end() -> None:
    trainer, feed = make_trainer(), MadeFeed(6)
    assert trainer.train_epoch(
        feed, Totals(), progress(6), lambda: at(trainer, 6, Wish.STOP)
    )
    assert feed.state_dict() == {"epoch": 1, "step": 0}


def test_a_wish_to_save_finds_the_totals_of_the_steps_before_it() -> None:
    """And training goes on."""
    trainer, totals, feed, found = make_trainer(), Totals(), MadeFeed(6), []

    def save() -> None:
        found.append((trainer.step, totals.num_images, totals.loss_sum, feed.state_dict()))

    assert trainer.train_epoch(
        feed, totals, progress(6), lambda: at(trainer, 2, Wish.SAVE), save
    )
    stopped, half, other = make_trainer(), Totals(), MadeFeed(6)
    stopped.train_epoch(other, half, progress(6), lambda: at(stopped, 2, Wish.STOP))
    assert found == [(2, half.num_images, half.loss_sum, other.state_dict())]
    assert trainer.step == 6 and totals.num_images == 24


@pytest.mark.parametrize("bad_step", [1, 4, 6])
def test_a_loss_that_is_not_finite_stops_the_epoch_and_names_its_step(bad_step: int) -> None:
    class BadFeed(MadeFeed):
        def __iter__(self) -> Iterator[Batch]:
            for step, batch in enumerate(super().__iter__(), 1):
                if step == bad_step:
                    images = torch.full_like(batch.images, float("inf"))
                    batch = dataclasses.replace(batch, images=images)
                yield batch

    with pytest.raises(FloatingPointError, match=f"loss of step {bad_step} is nan"):
        make_trainer().train_epoch(BadFeed(6), Totals(), progress(6), never)


@each
def test_bf16_trains_close_to_fp32(preset: Preset) -> None:
    batch = make_batch(8, 3, 1)
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(preset, precision=precision)
        trainer.model.train()
        losses.append([trainer.train_step(batch).item() for _ in range(3)])
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_images_are_divided_and_conv1_learns_as_the_epoch_says() -> None:
    """Three epochs of two steps: lit; dark with a slower conv1; conv1 frozen and a drop."""
    preset = override(KRIZ2012, {
        "lighting_off_epoch": 1, "drop_epochs": [2],
        "layer_rates": [[1, "conv1", 0.1], [2, "conv1", 0.0]],
    })  # fmt: skip
    trainer = make_trainer(preset, steps_per_epoch=2)
    seen = []  # by conv1
    trainer.model.conv1.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].abs().sum())
    )
    trainer.model.train()
    rates, divisors = [], []
    for step in range(6):
        batch = make_batch(4, 3, step)
        trainer.train_step(batch)
        undivided = trainer.model.prepared(batch.images, batch.crop).abs().sum()
        divisors.append(float(undivided / seen[-1]))
        rates.append(learning_rates(trainer.optimizer))
    assert divisors == pytest.approx([1.1, 1.1, 1.0, 1.0, 1.0, 1.0])
    expected = {
        "matrices": [1, 1, 1, 1, 0.1, 0.1],
        "vectors": [2, 2, 2, 2, 0.2, 0.2],
        "conv1.matrices": [1, 1, 0.1, 0.1, 0, 0],
        "conv1.vectors": [2, 2, 0.2, 0.2, 0, 0],
    }
    found = {name: [1000 * rate[name] for rate in rates] for name in expected}
    assert found == {name: pytest.approx(factors) for name, factors in expected.items()}


def test_dropout_depends_on_the_seed_and_the_step() -> None:
    batch = make_batch(8, 3, 1)
    one, other = make_trainer(), make_trainer()
    other.seed = 1
    for trainer in (one, other):
        trainer.model.train()
    assert one.train_step(batch) != other.train_step(batch)


def test_modern_learns_32_images_by_heart() -> None:
    """With labels that the images do not explain: only remembering brings the errors to 0."""
    batch = make_batch(32, 3, 2)
    shuffled = torch.randperm(32, generator=random_source("cpu", 0))
    batch = dataclasses.replace(batch, labels=batch.labels[shuffled])
    preset = override(MODERN, {"dropout": False})
    trainer = make_trainer(preset, steps_per_epoch=100, learning_rate=0.01)
    errors = []
    for _ in range(50):
        trainer.model.train()
        trainer.train_step(batch)
        errors.append(round(evaluate(trainer.model, [batch]).top1_error * 32))
        if errors[-1] == 0:
            break
    assert errors[0] > 10 and errors[-1] == 0


@pytest.mark.parametrize(
    ("preset", "changes"), [(PAPER, {"init_std": 0.02}), (KRIZ2012, {})], ids=["paper", "kriz2012"]
)
def test_the_presets_of_2012_learn_32_images(preset: Preset, changes: dict[str, Any]) -> None:
    """With dropout. kriz2012 from its own initial weights, paper from wider ones: it is slower."""
    batch = make_batch(32, 3, 2)
    trainer = make_trainer(override(preset, changes), steps_per_epoch=100, learning_rate=0.01)
    trainer.model.train()
    losses: list[float] = []
    while len(losses) < 40 and (not losses or losses[-1] > 0.05):
        losses.append(trainer.train_step(batch).item())
    assert losses[0] > 1.0 and losses[-1] < 0.05
    assert evaluate(trainer.model, [batch]).top1_error == 0
