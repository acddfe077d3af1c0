"""Shapes, parameters and multiply-adds of the network and of every variant."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.model import AlexNet
from trainer.override import override, read_config
from trainer.preset import Preset
from trainer.presets import KRIZ2012, MODERN, PAPER, PRESETS
from trainer.summary import layer_sizes, summary

both = pytest.mark.parametrize("preset", [PAPER, KRIZ2012], ids=lambda preset: str(preset.name))


def counts(preset: Preset) -> tuple[int, int]:
    sizes = layer_sizes(preset, 1000)
    with torch.device("meta"):
        model = AlexNet(preset, 1000)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == sum(size.num_parameters for size in sizes)
    return parameters, sum(size.num_multiply_adds for size in sizes)


@both
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (60_965_224, 724_406_816)),
        ({"columns": 1}, (62_378_344, 1_135_256_096)),  # the "62.3M / 1.1G" of many articles
        ({"conv6": 256}, (61_555_304, None)),
        ({"columns": 1, "channels": [48, 128, 192, 192, 256]}, (59_798_312, None)),
    ],
    ids=["two-columns", "ungrouped", "conv6", "one-column"],
)
def test_networks_have_their_published_counts(
    preset: Preset, changes: dict[str, Any], expected: tuple[int, int | None]
) -> None:
    found = counts(override(preset, changes))
    assert found == (expected[0], expected[1] or found[1])


# kernels, channels that one sees, side of the kernel, side of the maps
CONVOLUTIONS = {
    "conv1": (96, 3, 11, 55),
    "conv2": (256, 48, 5, 27),
    "conv3": (384, 256, 3, 13),
    "conv4": (384, 192, 3, 13),
    "conv5": (256, 192, 3, 13),
}


def by_hand(fc6: int = 9216, fc7: int = 4096, **changed: tuple[int, ...] | None) -> Any:
    """Parameters and multiply-adds from kernels, as a table. fc6, fc7: inputs that one sees."""
    rows = {name: row for name, row in (CONVOLUTIONS | changed).items() if row}
    weights = {name: row[0] * row[1] * row[2] ** 2 for name, row in rows.items()}
    adds = sum(weights[name] * row[3] ** 2 for name, row in rows.items())
    full = 4096 * fc6 + 4096 * fc7 + 1000 * 4096
    biases = sum(row[0] for row in rows.values()) + 4096 + 4096 + 1000
    return sum(weights.values()) + full + biases, adds + full


@both
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, by_hand()),
        ({"norm": "none"}, by_hand()),
        ({"activation": "tanh"}, by_hand()),
        ({"conv6": 256}, by_hand(conv6=(256, 256, 3, 6))),
        ({"removed": ["conv2"]}, by_hand(conv2=None, conv3=(384, 96, 3, 13))),
        ({"removed": ["conv3"]}, by_hand(conv3=None, conv4=(384, 128, 3, 13))),
        ({"removed": ["conv4"]}, by_hand(conv4=None)),
        ({"removed": ["conv5"]}, by_hand(conv5=None, fc6=384 * 36)),
        ({"pool_px": 2}, by_hand(conv2=(256, 48, 5, 26), conv5=(256, 192, 3, 11))),
        (
            {"exchange": False},
            by_hand(conv3=(384, 128, 3, 13), fc6=9216 // 2, fc7=4096 // 2),
        ),
        (
            {"columns": 1, "channels": [48, 128, 192, 192, 256]},
            by_hand(
                conv1=(48, 3, 11, 55), conv2=(128, 48, 5, 27), conv3=(192, 128, 3, 13),
                conv4=(192, 192, 3, 13), conv5=(256, 192, 3, 13),
            ),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_variants_have_the_counts_of_their_kernels(
    preset: Preset, changes: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert counts(override(preset, changes)) == expected


RECIPES = Path(__file__).parents[2] / "docs" / "recipes"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one-column", 59_798_312),
        ("fine-tune", 61_555_304),
        (
            "no-exchange",  # 2012 layers-150.cfg, its two columns added up
            by_hand(
                conv2=(320, 48, 5, 27), conv3=(384, 160, 3, 13), fc6=2 * 4608, fc7=4096
            )[0] + 4096,
        ),
    ],
)  # fmt: skip
def test_the_recipes_are_the_networks_they_say(name: str, expected: int) -> None:
    changes = read_config(RECIPES / f"{name}.toml")
    assert counts(override(KRIZ2012, changes))[0] == expected


def test_batch_norm_adds_a_scale_and_a_shift_per_map() -> None:
    assert counts(MODERN) == (60_965_224 + 2 * (96 + 256), 724_406_816)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: str(preset.name))
@pytest.mark.parametrize("pool_px", [2, 3])
def test_the_maps_have_the_papers_sizes(preset: Preset, pool_px: int) -> None:
    shapes = [
        (size.name, size.shape)
        for size in layer_sizes(override(preset, {"pool_px": pool_px, "conv6": 256}), 1000)
        if "norm" not in size.name
    ]
    tight = pool_px == 2  # 2012 layers-147.cfg
    assert shapes == [
        ("conv1", (96, 55, 55)),
        ("pool", (96, 28, 28) if tight else (96, 27, 27)),
        ("conv2", (256, 26, 26) if tight else (256, 27, 27)),
        ("pool", (256, 13, 13)),
        ("conv3", (384, 13, 13)),
        ("conv4", (384, 13, 13)),
        ("conv5", (256, 11, 11) if tight else (256, 13, 13)),
        ("pool", (256, 6, 6)),
        ("conv6", (256, 6, 6)),
        ("fc6", (4096,)),
        ("fc7", (4096,)),
        ("fc8", (1000,)),
    ]


def test_the_layers_come_in_the_order_of_the_preset() -> None:
    def names(preset: Preset) -> list[str]:
        return [size.name for size in layer_sizes(preset, 10, 1 / 16)][:8]

    first = ["normalise", "conv1", "norm1", "pool", "conv2", "norm2"]
    assert names(PAPER) == names(MODERN) == [*first, "pool", "conv3"]
    assert names(KRIZ2012) == [*first, "map_norm2", "pool"]
    assert names(override(KRIZ2012, {"norm": "none"}))[:4] == [
        "normalise", "conv1", "pool", "conv2",
    ]  # fmt: skip


def test_the_table_ends_with_the_totals() -> None:
    lines = summary(PAPER, 1000).splitlines()
    assert lines[-1].split() == ["total,", "1,000", "classes", "60,965,224", "724,406,816"]
    assert len({len(line) for line in lines}) == 1
