"""Micro-batches, half precision, the average, the watch over losses and weights, in the loop."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.loader import Batch
from tests.trainer.conftest import MadeFeed, make_batch
from tests.trainer.test_loop import each, make_trainer, never, progress, weights
from trainer.guard import LossRecord
from trainer.loop import Trainer
from trainer.metrics import Totals
from trainer.preset import Preset
from trainer.presets import KRIZ2012, MODERN, PAPER


@pytest.mark.parametrize("bad_step", [1, 2, 4])
def test_a_loss_that_is_not_finite_is_found_long_before_the_epoch_ends(bad_step: int) -> None:
    trainer, feed = make_trainer(), MadeFeed(100)
    trainer._losses = LossRecord(check_steps=4)
    spoil(trainer, bad_step)
    with pytest.raises(FloatingPointError, match=f"loss of step {bad_step} is nan"):
        trainer.train_epoch(feed, Totals(), progress(100), never)
    assert trainer.step == 4


def spoil(trainer: Trainer, step: int) -> None:
    """Makes the loss of that step NaN, and nothing else."""
    right = trainer.train_step

    def wrong(batch: Batch) -> Tensor:
        loss = right(batch)
        return loss * float("nan") if trainer.step == step else loss

    trainer.train_step = wrong  # type: ignore[method-assign]


@each
@pytest.mark.parametrize("comforts", [{}, {"micro_batch": 2}, {"ema_decay": 0.9}])
def test_a_step_does_not_wait_for_the_device(
    preset: Preset, comforts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing reads a number out of a tensor, which is what would wait for a GPU."""
    trainer, batch = make_trainer(preset, **comforts), make_batch(4, 3, 1)
    trainer.model.train()

    def waits(tensor: Tensor, *arguments: Any) -> Any:
        raise AssertionError("a number is read from the device")

    # On a CPU, where nobody waits, crops are read to take images one by one.
    monkeypatch.setattr("trainer.input._goes_by_image", lambda *arguments: False)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, waits)
    trainer.train_step(batch)
    trainer.train_step(batch)


def in_float64(trainer: Trainer) -> Trainer:
    """The trainer with a network that computes in float64 behind the normalisation."""
    trainer.model.double().normalise.register_forward_hook(lambda *call: call[-1].double())
    trainer.model.train()
    return trainer


@pytest.mark.parametrize(
    ("preset", "micro_batch"),
    [(PAPER, 1), (PAPER, 4), (PAPER, 5), (PAPER, 8), (PAPER, 11), (KRIZ2012, 5)],
)
def test_micro_batches_make_the_step_of_the_whole_batch(preset: Preset, micro_batch: int) -> None:
    """Weights and momentum after steps with dropout, in float64; 5 does not divide the 8."""
    whole = in_float64(make_trainer(preset))
    parts = in_float64(make_trainer(preset, micro_batch=micro_batch))
    for step in range(3):
        batch = make_batch(8, 3, step)
        losses = [trainer.train_step(batch) for trainer in (whole, parts)]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    moved = 0.0
    for name, parameter in whole.model.named_parameters():
        other = parts.model.get_parameter(name)
        torch.testing.assert_close(other, parameter, rtol=1e-12, atol=1e-14)
        momentum, others = (
            trainer.optimizer.state[tensor]["momentum_buffer"]
            for trainer, tensor in ((whole, parameter), (parts, other))
        )
        torch.testing.assert_close(others, momentum, rtol=1e-12, atol=1e-12)
        moved += momentum.abs().sum().item()
    assert moved > 0


def test_micro_batches_normalise_on_their_own_in_modern() -> None:
    """Batch norm sees one micro-batch: the step is near that of the whole batch, not equal."""
    whole, parts = make_trainer(MODERN), make_trainer(MODERN, micro_batch=4)
    batch = make_batch(8, 3, 1)
    for trainer in (whole, parts):
        trainer.model.train()
    one, other = whole.train_step(batch).item(), parts.train_step(batch).item()
    assert one != other and other == pytest.approx(one, rel=0.5)


@each
def test_the_average_is_of_the_weights_after_each_step(preset: Preset) -> None:
    trainer, batch = make_trainer(preset, ema_decay=0.75), make_batch(4, 3, 1)
    assert trainer.ema
    expected = trainer.model.fc8.weight.detach().double()
    trainer.model.train()
    for _ in range(3):
        trainer.train_step(batch)
        expected = 0.75 * expected + 0.25 * trainer.model.fc8.weight.detach().double()
    torch.testing.assert_close(trainer.ema.model.fc8.weight.double(), expected)


def test_averaging_changes_nothing_in_the_training() -> None:
    plain, averaged = make_trainer(), make_trainer(ema_decay=0.9)
    for trainer in (plain, averaged):
        trainer.train_epoch(MadeFeed(3), Totals(), progress(3), never)
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, averaged.model.state_dict()[name])


def test_the_weights_are_watched_in_the_last_step_where_asked() -> None:
    plain, watched = make_trainer(PAPER), make_trainer(PAPER)
    watched.watch_weights = True
    for trainer in (plain, watched):
        trainer.train_epoch(MadeFeed(3), Totals(), progress(3), never)
    assert not plain.weight_changes
    for name, parameter in watched.model.named_parameters():
        velocity = watched.optimizer.state[parameter]["momentum_buffer"] * -0.001
        change = watched.weight_changes[name]
        assert change.mean_abs == pytest.approx(parameter.abs().mean().item())
        step = velocity.abs().mean().item()
        assert change.mean_abs_step == pytest.approx(step, rel=0.05)  # biases near 1 round it
        assert torch.equal(parameter, plain.model.get_parameter(name))


@each
def test_fp16_trains_close_to_fp32(preset: Preset) -> None:
    batch = make_batch(8, 3, 1)
    losses = []
    for precision in ("fp32", "fp16"):
        trainer = make_trainer(preset, precision=precision)
        if scale := trainer.arithmetic.state_dict():  # one at which no step is left out
            trainer.arithmetic.load_state_dict({**scale, "scale": 128.0})
        trainer.model.train()
        losses.append([trainer.train_step(batch).item() for _ in range(3)])
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
