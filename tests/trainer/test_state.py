"""A run is put back where it was: weights, average, momentum, scale of fp16, position."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipeline.manifest import Dataset
from tests.trainer.conftest import MadeFeed
from tests.trainer.test_loop import make_trainer
from trainer.checkpoint import Checkpoint
from trainer.loop import Trainer
from trainer.preset import Preset
from trainer.presets import MODERN, PAPER
from trainer.state import capture, restore

NUM_STEPS = 6


class Feed(MadeFeed):
    """A made-up feed with what a checkpoint wants to know of it."""

    dataset = cast(Dataset, SimpleNamespace(settings={"codec": "made up"}))
    backend = "made up"
    description = "made up, for a test"

    def set_epoch(self, epoch: int) -> None:
        """Moves to the beginning of an epoch."""
        self.epoch, self.step = epoch, 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.epoch, self.step = state["epoch"], state["step"]


def fp16_trainer(preset: Preset, **options: Any) -> Trainer:
    """In fp16, with a scale at which the first steps overflow, and an average."""
    trainer = make_trainer(preset, precision="fp16", ema_decay=0.5, **options)
    scale = trainer.arithmetic.state_dict()
    trainer.arithmetic.load_state_dict({**scale, "scale": 2.0**24})
    return trainer


def advance(trainer: Trainer, feed: Feed, num_steps: int) -> None:
    trainer.model.train()
    for _, batch in zip(range(num_steps), feed, strict=False):
        trainer.train_step(batch)


def captured(trainer: Trainer, feed: Feed) -> Checkpoint:
    config = {
        "preset": trainer.preset.to_dict(),
        "width": trainer.model.width,
        "classes": [str(label) for label in range(trainer.model.num_classes)],
    }
    return capture(trainer, feed, config, {"epoch": 0})


@pytest.mark.parametrize("preset", [PAPER, MODERN], ids=lambda preset: str(preset.name))
@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_put_back_goes_on_to_the_bit(preset: Preset, stop: int) -> None:
    whole, whole_feed = fp16_trainer(preset), Feed(NUM_STEPS)
    advance(whole, whole_feed, NUM_STEPS - 1)
    first, first_feed = fp16_trainer(preset), Feed(NUM_STEPS)
    advance(first, first_feed, stop)
    second, second_feed = make_trainer(preset, precision="fp16", ema_decay=0.5), Feed(NUM_STEPS)
    restore(captured(first, first_feed), second, second_feed)
    advance(second, second_feed, NUM_STEPS - 1 - stop)
    one, other = captured(whole, whole_feed), captured(second, second_feed)
    for part in ("model", "momentum", "ema"):
        ours, theirs = getattr(one, part), getattr(other, part)
        assert ours.keys() == theirs.keys() and ours
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), f"{part}.{name}"
    assert one.arithmetic == other.arithmetic and one.arithmetic["scale"] < 2.0**24
    assert (one.progress, one.loader) == (other.progress, other.loader)


def test_weights_that_are_no_numbers_are_not_kept() -> None:
    trainer, feed = make_trainer(), Feed(NUM_STEPS)
    advance(trainer, feed, 2)
    captured(trainer, feed)
    with torch.no_grad():
        trainer.model.fc7.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="fc7.weight after step 2 is not finite"):
        captured(trainer, feed)
