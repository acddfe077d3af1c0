"""A recorded step is the eager one: same losses, weights and momentum, whatever changes between.

Without a GPU the recording is a stand-in that computes anew: all but the graph itself is tested.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.conftest import make_batch
from trainer.captured import CapturedStep, Record, learning
from trainer.collectives import Group
from trainer.loop import Trainer, why_eager
from trainer.model import AlexNet
from trainer.optimizer import momentum_state
from trainer.parallel import ALONE, Layout
from trainer.preset import LayerRate, Preset
from trainer.presets import find_preset

BATCH, CLASSES, STEPS = 4, 3, 5
has_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here"
)


def computed_anew(compute: Callable[[], None]) -> Callable[[], object]:
    """In place of a graph: after warming up, which it leaves behind, each replay computes."""
    for _ in range(3):
        compute()
    return compute


def preset_of(name: str) -> Preset:
    """With a rate that changes at every epoch, and conv1 frozen from the third on."""
    preset = find_preset(name)
    training = dataclasses.replace(
        preset.training,
        schedule="steps",
        drop_epochs=(1,),
        learning_rate=0.01,
        layer_rates=(LayerRate(0, "conv1", 0.5), LayerRate(2, "conv1", 0.0)),
    )
    return dataclasses.replace(preset, training=training)


def trained(
    name: str,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    captured: bool,
    record: Record = computed_anew,
    **options: Any,
) -> tuple[list[Tensor], Trainer]:
    """Losses of five steps, two an epoch, and the trainer after them."""
    preset = preset_of(name)
    model = AlexNet(preset, CLASSES, 0.05)
    model.initialise(0)
    model.place(torch.device(device))
    trainer = Trainer(
        model=model, preset=preset, steps_per_epoch=2, seed=7, precision="fp32", **options
    )
    if captured:
        trainer._captures = True
        if device == "cpu":
            monkeypatch.setattr("trainer.captured.record_cuda", record)
    model.train()
    losses = []
    for step in range(STEPS):
        batch = make_batch(BATCH, CLASSES, step)
        moved = {
            name: value.to(device) if name != "ids" else value
            for name, value in vars(batch).items()
            if value is not None
        }
        losses.append(trainer.train_step(dataclasses.replace(batch, **moved)))
    return losses, trainer


def everything(trainer: Trainer) -> dict[str, Tensor]:
    momentum = momentum_state(trainer.model, trainer.optimizer)
    found = {**trainer.model.state_dict(), **{f"v {k}": v for k, v in momentum.items()}}
    if trainer.ema:
        found |= {f"ema {k}": v for k, v in trainer.ema.state_dict().items()}
    return found


def assert_equal_runs(
    one: tuple[list[Tensor], Trainer], two: tuple[list[Tensor], Trainer]
) -> None:
    assert torch.equal(torch.stack(one[0]), torch.stack(two[0]))
    found, expected = everything(one[1]), everything(two[1])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", ["paper", "kriz2012", "modern"])
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}], ids=["plain", "ema"])
def test_a_captured_run_is_the_eager_one_bit_for_bit(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a drop of the rate, lighting's divisor and a layer that is frozen."""
    eager = trained(name, "cpu", monkeypatch, captured=False, **options)
    captured = trained(name, "cpu", monkeypatch, captured=True, **options)
    assert_equal_runs(captured, eager)
    assert not captured[1].model.conv1.weight.requires_grad
    rates = {group["lr"] for group in captured[1].optimizer.param_groups}
    assert rates and all(isinstance(rate, float) for rate in rates)  # saved as numbers


@pytest.mark.gpu
@has_gpu
@pytest.mark.parametrize("name", ["paper", "kriz2012", "modern"])
def test_a_graph_is_the_eager_run_bit_for_bit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    eager = trained(name, "cuda", monkeypatch, captured=False)
    assert_equal_runs(trained(name, "cuda", monkeypatch, captured=True), eager)


@pytest.mark.gpu
@has_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_captured_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = trained("paper", "cuda", monkeypatch, captured=True)
    batch = make_batch(BATCH, CLASSES, 0)
    there = {name: getattr(batch, name).cuda() for name in ("images", "labels", "crop")}
    batch = dataclasses.replace(batch, **there)
    trainer.train_step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_is_to_be_looked_at_is_made_layer_by_layer_and_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eager = trained("paper", "cpu", monkeypatch, captured=False)[1]
    captured = trained("paper", "cpu", monkeypatch, captured=True)[1]
    captured.model.forms = {"conv1": "unshuffled"}
    captured.compute_plainly()
    seen: list[str] = []
    for name, layer in captured.model.named_children():
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    batch = make_batch(BATCH, CLASSES, 8)
    assert torch.equal(captured.train_step(batch), eager.train_step(batch))
    assert {"conv1", "conv2", "fc8"} <= set(seen)
    assert torch.equal(captured.model.conv1.weight, eager.model.conv1.weight)


def test_recording_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = trained("modern", "cpu", monkeypatch, captured=False)
    before = {name: value.clone() for name, value in everything(trainer).items()}
    places = {name: value.data_ptr() for name, value in everything(trainer).items()}
    CapturedStep(
        trainer.model,
        trainer.optimizer,
        trainer.arithmetic,
        make_batch(BATCH, CLASSES, 9),
        record=computed_anew,
    )
    after = everything(trainer)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: value.data_ptr() for name, value in after.items()} == places


def test_a_step_is_recorded_again_only_where_another_layer_learns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five steps in three epochs, a rate that drops after the first, conv1 frozen in the third."""
    recorded = 0

    def counting(compute: Callable[[], None]) -> Callable[[], object]:
        nonlocal recorded
        recorded += 1
        return computed_anew(compute)

    trained("paper", "cpu", monkeypatch, captured=True, record=counting)
    assert recorded == 2


def test_a_batch_of_another_size_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = trained("paper", "cpu", monkeypatch, captured=False)
    step = CapturedStep(
        trainer.model,
        trainer.optimizer,
        trainer.arithmetic,
        make_batch(BATCH, CLASSES, 9),
        record=computed_anew,
    )
    assert step.fits(make_batch(BATCH, CLASSES, 1))
    assert not step.fits(make_batch(BATCH + 1, CLASSES, 1))
    assert learning(trainer.model) == step.learning
    trainer.model.fc8.weight.requires_grad_(False)
    assert not step.fits(make_batch(BATCH, CLASSES, 1))


@pytest.mark.parametrize(
    ("device", "layout", "skips", "micro", "told"),
    [
        ("cuda", ALONE, False, None, None),
        ("cpu", ALONE, False, None, "cpu has no graphs"),
        ("cuda", ALONE, True, None, "fp16"),
        ("cuda", ALONE, False, 8, "micro-batches"),
    ],
)
def test_what_cannot_be_captured_says_why(
    device: str, layout: Layout, skips: bool, micro: int | None, told: str | None
) -> None:
    found = why_eager(torch.device(device), layout, skips, micro)
    assert found is None if told is None else told in str(found)


def test_several_ranks_are_not_captured() -> None:
    pair = Group()
    pair.size = 2
    layout = Layout(ranks=pair)
    assert "between processes" in str(why_eager(torch.device("cuda"), layout, False, None))
