"""Which layer first gave numbers that are not finite: the last steps are made once more.

No step looks at more than its loss. When one turns out not to be finite, every weight already is
not: so the state of the last good moment is kept, at most some hundred steps back, and the steps
since then, which are a function of it, are made again up to the bad one, layer by layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.loader import Batch
from trainer.guard import LossNotFinite
from trainer.loop import Trainer
from trainer.model import AlexNet
from trainer.optimizer import learning_rates, load_momentum, momentum_state
from trainer.state import ResumableFeed

IMAGES, LOGITS = "the images", "the logits"


class Retrace:
    """A trainer's last good moment. It takes as much memory as weights and momentum, once."""

    def __init__(self, trainer: Trainer, feed: ResumableFeed) -> None:
        self._trainer, self._feed = trainer, feed
        self._weights: dict[str, Tensor] = {}
        self._momentum: dict[str, Tensor] = {}
        self._rest: dict[str, Any] = {}

    def keep(self) -> None:
        """This moment is good: between two steps, all losses so far being finite."""
        trainer = self._trainer
        _copy(trainer.model.state_dict(), self._weights)
        _copy(momentum_state(trainer.model, trainer.optimizer), self._momentum)
        self._rest = {
            "step": trainer.step,
            "rates": learning_rates(trainer.optimizer),
            "arithmetic": trainer.arithmetic.state_dict(),
        }

    def blame(self, error: LossNotFinite) -> str:
        """Where it began, as words that follow the error's; "" where it does not happen again.

        Every rank calls it. Trainer and feed are left in that step: the run is over.
        """
        trainer = self._trainer
        trainer.compute_plainly()
        self._return()
        for batch in self._feed:
            if trainer.step + 1 < error.step:
                trainer.train_step(batch)
                continue
            with outputs_watched(trainer.model) as watched:
                trainer.train_step(batch)
            return self._words(batch, watched)
        return ""

    def _return(self) -> None:
        """Puts trainer and feed where `keep` found them."""
        trainer, rest = self._trainer, self._rest
        trainer.model.load_state_dict(self._weights)
        trainer.optimizer.state.clear()  # before the first step there was none
        load_momentum(trainer.model, trainer.optimizer, self._momentum, rest["rates"])
        trainer.arithmetic.load_state_dict(rest["arithmetic"])
        trainer.step = rest["step"]
        epoch, step = divmod(trainer.step, trainer.steps_per_epoch)
        self._feed.load_state_dict(self._feed.state_dict() | {"epoch": epoch, "step": step})

    def _words(self, batch: Batch, watched: list[tuple[str, Tensor]]) -> str:
        ranks = self._trainer.layout.ranks
        names = [IMAGES, *(name for name, _ in watched)]
        finite = [batch.images.isfinite().all(), *(good for _, good in watched)]
        mine = torch.stack(finite)
        everywhere = ranks.all_gather(mine.int()[None], 0)  # everywhere: (rank, name)
        spoilt = (everywhere == 0).tolist()
        for number, name in enumerate(names):
            found = [rank for rank in range(ranks.size) if spoilt[rank][number]]
            if found:
                told = "" if len(found) == ranks.size else f" on rank {', '.join(map(str, found))}"
                return f"; it began in {name}{told}"
        return ""


@contextmanager
def outputs_watched(model: AlexNet) -> Iterator[list[tuple[str, Tensor]]]:
    """Within it every layer's weights and output are looked at, in the order of the forward pass.

    Gives a list of names and whether all numbers are finite, a scalar on the device.
    """
    seen: list[tuple[str, Tensor]] = []

    def look(name: str, layer: nn.Module, output: Tensor) -> None:
        for kind, parameter in layer.named_parameters():
            seen.append((f"{name}.{kind}, before the step", parameter.detach().isfinite().all()))
        seen.append((f"the output of {name}", output.detach().isfinite().all()))

    handles = [
        layer.register_forward_hook(lambda layer, _, output, name=name: look(name, layer, output))
        for name, layer in model.named_children()
        if not isinstance(layer, nn.Identity | nn.MaxPool2d)
    ]
    handles.append(
        model.register_forward_hook(
            lambda _, __, logits: seen.append((LOGITS, logits.detach().isfinite().all()))
        )
    )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _copy(tensors: dict[str, Tensor], kept: dict[str, Tensor]) -> None:
    """Into the memory of the last time, where there was one."""
    for name, tensor in tensors.items():
        if name in kept:
            kept[name].copy_(tensor)
        else:
            kept[name] = tensor.detach().clone()
