"""The options of a run, and what follows from them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import (
    RunConfig,
    asked_preset,
    default_batch_size,
    find_device,
    resolve_preset,
)
from trainer.override import override
from trainer.presets import KRIZ2012, MODERN, PAPER
from trainer.schedule import build_schedule


def config(**options: Any) -> RunConfig:
    return RunConfig(**{"shards": Path("shards"), **options})


@pytest.mark.parametrize(
    ("num_images", "batch_size"),
    [(1, 1), (8, 1), (15, 1), (16, 2), (480, 32), (1498, 128), (8191, 512), (10**6, 1024)],
)
def test_the_default_batch_is_a_power_of_two_within_an_eighth(
    num_images: int, batch_size: int
) -> None:
    assert default_batch_size(MODERN, num_images) == batch_size


def test_the_learning_rate_is_scaled_with_the_batch() -> None:
    """Linearly in `paper`, with its square root in `modern`; nothing else changes."""
    expected = override(MODERN, {"batch_size": 256, "learning_rate": 0.04, "epochs": 7})
    assert resolve_preset(config(epochs=7), 2048) == expected
    paper = resolve_preset(config(preset="paper", batch_size=256), 10**6)
    assert paper.training.learning_rate == 0.02
    assert resolve_preset(config(), 10**6) == MODERN


def test_what_is_learnt_by_heart_is_neither_lit_nor_divided() -> None:
    """kriz2012 divides by 1.1 in training while lighting is on, and not where it is tested."""
    preset = resolve_preset(config(preset="kriz2012", overfit=32), 32)
    assert preset.augmentation == override(KRIZ2012, {"lighting": "off"}).augmentation
    assert preset.augmentation.divisor(0) == 1.0
    assert resolve_preset(config(preset="kriz2012"), 32).augmentation.divisor(0) == 1.1


def test_config_and_set_change_the_preset_and_set_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nmomentum = 0.5\nepochs = 30\n[network]\nconv6 = 256\n")
    asked = asked_preset(config(config_file=path, settings=("momentum=0.6",)))
    assert asked == override(MODERN, {"momentum": 0.6, "epochs": 30, "conv6": 256})


def test_epochs_moves_what_happens_at_an_epoch_in_proportion() -> None:
    preset = resolve_preset(config(preset="kriz2012", epochs=31, batch_size=128), 10**6)
    assert preset == override(KRIZ2012, {
        "epochs": 31,  # a third of 93
        "drop_epochs": [8, 17, 26],  # 7.7, 17 and 26
        "lighting_off_epoch": 23,  # 22.7
        "layer_rates": [[23, "conv1", 0.1], [24, "conv1", 0.0]],  # 22.7, 24
    })  # fmt: skip


@pytest.mark.parametrize(
    ("epochs", "patience"), [(1, 5), (10, 5), (90, 5), (91, 6), (108, 6), (180, 10)]
)
def test_a_longer_run_waits_longer_for_a_better_error_and_a_shorter_one_as_long(
    epochs: int, patience: int
) -> None:
    """`paper` waits for 5 of its 90 epochs."""
    preset = resolve_preset(config(preset="paper", epochs=epochs, batch_size=128), 10**6)
    assert preset == override(PAPER, {"epochs": epochs, "patience_epochs": patience})


def test_a_network_at_chance_at_first_is_given_the_time_to_begin() -> None:
    """Errors of `paper`, lighting=std, on 480 images, 24 epochs: no drop before it learns."""
    preset = resolve_preset(config(preset="paper", epochs=24, batch_size=32), 480)
    schedule = build_schedule(preset, steps_per_epoch=15)
    for error in (0.9, 0.9, 0.9, 0.881, 0.9, 0.812, 0.825, 0.731, 0.712, 0.681):
        schedule.observe(error)
        assert schedule.rate(0) == 0.0025


@pytest.mark.parametrize(("epochs", "drops"), [(1, 0), (2, 1), (3, 2), (6, 2), (7, 3), (93, 3)])
def test_all_drops_act_in_a_run_that_is_long_enough_for_them(epochs: int, drops: int) -> None:
    """At 23, 51 and 78 of 93 epochs, rounded up: one that falls on the end never acts."""
    preset = resolve_preset(config(preset="kriz2012", epochs=epochs, batch_size=128), 10**6)
    schedule = build_schedule(preset, steps_per_epoch=10)
    assert schedule.rate(10 * epochs - 1) == pytest.approx(0.01 / 10**drops)
    assert schedule.rate(0) == 0.01 and preset.augmentation.is_lit(0)


@pytest.mark.parametrize("name", ["paper", "kriz2012"])
def test_a_few_images_are_learned_at_a_rate_that_never_drops(name: str) -> None:
    """Whatever the error does; scaled with the root of the batch, for 4 images of 128."""
    preset = resolve_preset(config(preset=name, overfit=32), 32)
    schedule = build_schedule(preset, steps_per_epoch=8)
    for epoch in range(preset.training.epochs):
        assert schedule.rate(8 * epoch) == pytest.approx(0.01 * (4 / 128) ** 0.5)
        schedule.observe(0.9)
    assert not preset.training.layer_rates and not preset.augmentation.is_lit(0)


def test_a_batch_larger_than_the_training_split_is_refused() -> None:
    with pytest.raises(ValueError, match="--batch-size is 65, the training split has 64 images"):
        resolve_preset(config(batch_size=65), 64)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("preset", "papre"),
        ("epochs", 0),
        ("batch_size", -1),
        ("loader_threads", 0),
        ("prefetch", 0),
        ("device", "tpu"),
        ("precision", "fp8"),
        ("width", 0.0),
        ("width", 1e-300),
        ("width", float("nan")),
        ("micro_batch", 0),
        ("ema", 1.0),
        ("ema", float("nan")),
        ("weight_report", 0),
        ("limit_steps", 0),
        ("overfit", -8),
        ("seed", -1),
    ],
)
def test_an_option_out_of_bounds_is_refused_by_its_flag(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} "):
        config(**{option: value})


def test_the_run_folder_is_named_after_preset_and_seed() -> None:
    assert config(preset="paper", seed=3).folder == Path("runs/paper-3")
    assert config(out=Path("here")).folder == Path("here")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused_and_auto_is_the_cpu() -> None:
    assert find_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="--device cuda: PyTorch sees no GPU"):
        find_device("cuda")
