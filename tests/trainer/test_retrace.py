"""The layer in which a loss that is no number began, in one process and in several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tests.trainer.ranks import run_ranks
from trainer.checkpoint import load_checkpoint
from trainer.config import RunConfig
from trainer.loop import Trainer
from trainer.session import Session
from trainer.world import World

LAYERS = ("conv1", "norm1", "conv4", "fc7", "fc8")


def config(shards: Path, out: Path, **options: Any) -> RunConfig:
    small: dict[str, Any] = {
        "epochs": 2, "batch_size": 8, "width": 1 / 32, "backend": "numpy", "device": "cpu",
        "preset": "kriz2012",
    }  # fmt: skip
    return RunConfig(**{"shards": shards, "out": out, **small, **options})


def here() -> World:
    cpu = torch.device("cpu")
    if not dist.is_initialized():
        return World(device=cpu)
    size = dist.get_world_size()
    return World(device=cpu, rank=dist.get_rank(), size=size, local_size=size)


def told(asked: RunConfig, spoil: Callable[[Trainer], None]) -> str:
    """What a run says in which `spoil` is called before each step."""
    original = Trainer.train_step

    def step(self: Trainer, batch: Any) -> Any:
        spoil(self)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        with Session(asked, here()) as session:
            try:
                session.run()
            except ValueError as error:
                return str(error)
    return ""


def burst(layer: str, bad_step: int, rank: int | None = None) -> Callable[[Trainer], None]:
    """In one step a layer's output overflows, on one rank or on all."""

    def spoil(trainer: Trainer) -> None:
        if trainer.step + 1 == bad_step and rank in (None, trainer.layout.ranks.rank):
            handles: list[RemovableHandle] = []

            def overflow(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                handles.pop().remove()
                return output * float("inf")

            module = getattr(trainer.model, layer)
            handles.append(module.register_forward_hook(overflow, prepend=True))

    return spoil


@pytest.mark.parametrize("layer", LAYERS)
def test_the_layer_is_named_and_the_last_checkpoint_stays(
    layer: str, shard_folder: Path, tmp_path: Path
) -> None:
    """In the third step of the second epoch, of four; also where its weights are all spoilt."""
    message = told(config(shard_folder, tmp_path), burst(layer, 7))
    assert "the loss of step 7 is nan; it began in the output of " + layer in message
    assert "last.safetensors is still good" in message
    assert load_checkpoint(tmp_path / "last.safetensors").progress["step"] == 4


def test_a_weight_that_its_update_spoilt_is_named(shard_folder: Path, tmp_path: Path) -> None:
    def spoil(trainer: Trainer) -> None:
        if trainer.step == 5:
            with torch.no_grad():
                trainer.model.fc6.bias[0] = float("nan")

    message = told(config(shard_folder, tmp_path), spoil)
    assert "the loss of step 6 is nan; it began in fc6.bias, before the step" in message


def test_what_does_not_happen_again_is_told_by_its_step_alone(
    shard_folder: Path, tmp_path: Path
) -> None:
    once = iter([burst("conv2", 3)])

    def spoil(trainer: Trainer) -> None:
        if trainer.step == 2 and (fault := next(once, None)):
            fault(trainer)

    message = told(config(shard_folder, tmp_path), spoil)
    assert "the loss of step 3 is nan; no checkpoint was written yet" in message


def told_by_ranks(asked: list[tuple[RunConfig, str]]) -> list[str]:
    return [told(one, burst(layer, 6, rank=1)) for one, layer in asked]


def test_the_rank_is_named_with_the_layer_in_every_mode(
    shard_folder: Path, tmp_path: Path
) -> None:
    """The loss of the rank that shares the network with it is spoilt as well."""
    asked = [
        (config(shard_folder, tmp_path / mode, parallel=mode), layer)
        for mode, layer in (("data", "conv3"), ("columns", "conv2"), ("hybrid", "fc6"))
    ]
    for messages in run_ranks(2, told_by_ranks, asked):
        for message, (_, layer) in zip(messages, asked, strict=True):
            assert "the loss of step 6 is nan" in message
            assert f"it began in the output of {layer} on rank 1; " in message
