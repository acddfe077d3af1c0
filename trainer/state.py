"""What of a run in training is saved, and how it is taken up again."""

from importlib.metadata import version
from typing import Any, Protocol

import torch

from pipeline.manifest import Dataset
from trainer.checkpoint import Checkpoint, load_model
from trainer.guard import require_finite
from trainer.loop import Feed, Trainer
from trainer.optimizer import learning_rates, load_momentum, momentum_state


class ResumableFeed(Feed, Protocol):
    """A feed whose position is part of a checkpoint."""

    dataset: Dataset

    @property
    def backend(self) -> str:
        """The name of what decodes and augments."""

    @property
    def description(self) -> str:
        """What decodes and augments, for the user."""

    def set_epoch(self, epoch: int) -> None:
        """Moves to the beginning of `epoch`, unless it is in it already."""

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch, JSON-able."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; ValueError where it does not fit."""


def capture(
    trainer: Trainer, feed: ResumableFeed, config: dict[str, Any], progress: dict[str, Any]
) -> Checkpoint:
    """The run between two steps. config: its description; progress: what else it has to resume.

    That of the whole network, whoever holds what: every rank calls it. FloatingPointError where a
    weight is no longer finite: that is not worth keeping.
    """
    whole = trainer.layout.whole_state
    weights = whole(trainer.model.state_dict())
    require_finite(weights, trainer.step)
    return Checkpoint(
        model=weights,
        momentum=whole(momentum_state(trainer.model, trainer.optimizer)),
        ema=whole(trainer.ema.state_dict()) if trainer.ema else {},
        config=config,
        progress={
            "step": trainer.step,
            "learning_rates": learning_rates(trainer.optimizer),
            "forms": dict(trainer.model.forms),
            **progress,
        },
        schedule=trainer.schedule.state_dict(),
        loader=feed.state_dict(),
        arithmetic=trainer.arithmetic.state_dict(),
        made_by={
            "fullfeed": version("fullfeed"),
            "torch": torch.__version__,
            "backend": feed.backend,
            "device": trainer.device.type,
            "shard_settings": dict(feed.dataset.settings),
        },
    )


def restore(checkpoint: Checkpoint, trainer: Trainer, feed: ResumableFeed) -> None:
    """Puts trainer and feed where `capture` found them; ValueError where they do not fit.

    Not the forms of convolutions, which the network has from the beginning.
    """
    load_model(trainer.model, checkpoint)
    rates, part = checkpoint.progress["learning_rates"], trainer.layout.part_state
    load_momentum(trainer.model, trainer.optimizer, part(checkpoint.momentum), rates)
    if trainer.ema:
        trainer.ema.load_state_dict(part(checkpoint.ema))
    trainer.arithmetic.load_state_dict(checkpoint.arithmetic)
    trainer.schedule.load_state_dict(checkpoint.schedule)
    trainer.step = checkpoint.progress["step"]
    feed.load_state_dict(checkpoint.loader)
