"""Every number of every preset, written down a second time, and how a preset is shown."""

import re
import tomllib
from typing import Any

import pytest

from trainer.override import FIELDS, flatten, override
from trainer.presets import KRIZ2012, PRESETS, describe_preset, find_preset

# By field: paper, kriz2012, modern. None: the preset makes no use of it.
TABLE: dict[str, tuple[Any, Any, Any]] = {
    "network.columns": (2, 2, 2),
    "network.exchange": (True, True, True),
    "network.channels": ([96, 256, 384, 384, 256],) * 3,
    "network.conv6": (0, 0, 0),
    "network.hidden": ([4096, 4096],) * 3,
    "network.removed": ([], [], []),
    "network.activation": ("relu", "relu", "relu"),
    "network.layer1_order": (
        "conv-relu-norm-pool", "conv-norm-pool-relu", "conv-relu-norm-pool",
    ),
    "network.pool_px": (3, 3, 3),
    "network.norm": ("response", "response", "batch"),
    "network.response_k": (2, 2, None),
    "network.response_size": (5, 5, None),
    "network.response_alpha": (0.0001, 0.0001, None),
    "network.response_alpha_divided": (False, True, None),
    "network.response_beta": (0.75, 0.75, None),
    "network.map_norm_px": (0, 5, 0),
    "network.map_norm_scale": (None, 0.001, None),
    "network.map_norm_power": (None, 0.75, None),
    "network.init": ("normal", "normal", "kaiming"),
    "network.init_std": (0.01, 0.01, None),
    "network.deep_init_std": (0.01, 0.03, None),
    "network.ones_biases": (True, True, False),
    "network.dropout": (True, True, True),
    "augmentation.mean": ("image-at-crop", "image-centre", "channel"),
    "augmentation.lighting": ("variance", "std", "std"),
    "augmentation.lighting_off_epoch": (0, 68, 0),
    "augmentation.input_divisor": (1, 1.1, 1),
    "augmentation.images_per_crop": (1, 32, 1),
    "training.batch_size": (128, 128, 1024),
    "training.learning_rate": (0.01, 0.01, 0.08),
    "training.batch_exponent": (1, 1, 0.5),
    "training.momentum": (0.9, 0.9, 0.9),
    "training.nesterov": (False, False, True),
    "training.weight_decay": (0.0005, 0.0005, 0.0005),
    "training.decay_vectors": (True, False, False),
    "training.vector_rate_factor": (1, 2, 1),
    "training.rescale_momentum": (True, True, False),
    "training.schedule": ("plateau", "steps", "cosine"),
    "training.epochs": (90, 93, 90),
    "training.drop_factor": (10, 10, None),
    "training.drop_epochs": ([], [23, 51, 78], []),
    "training.num_drops": (3, None, None),
    "training.patience_epochs": (5, None, None),
    "training.warmup_epochs": (None, None, 5),
    "training.layer_rates": ([], [[68, "conv1", 0.1], [72, "conv1", 0]], []),
    "training.precision": ("fp32", "fp32", "bf16"),
}  # fmt: skip


@pytest.mark.parametrize(("column", "name"), [(0, "paper"), (1, "kriz2012"), (2, "modern")])
def test_no_number_has_drifted(column: int, name: str) -> None:
    fields = flatten(find_preset(name).to_dict())
    assert fields.pop("name") == name and fields.keys() == TABLE.keys() == FIELDS.keys()
    expected = {field: row[column] for field, row in TABLE.items() if row[column] is not None}
    assert {field: fields[field] for field in expected} == expected


def test_there_are_three_presets() -> None:
    assert list(PRESETS) == ["modern", "paper", "kriz2012"]


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'papre' is unknown; .*: modern, paper, kriz2012"):
        find_preset("papre")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_shown_as_toml_with_a_source_beside_each_value(name: str) -> None:
    text = describe_preset(PRESETS[name])
    assert {"name": name, **tomllib.loads(text)} == PRESETS[name].to_dict()
    for line in text.splitlines():
        if "=" in line:
            comment = line.partition(" # ")[2]
            assert re.match(r"\[(paper|2012|he|goyal|sgdr|ours)\b|unused with", comment), line


def test_a_field_that_was_set_is_shown_with_what_the_preset_has() -> None:
    text = describe_preset(override(KRIZ2012, {"momentum": 0.8, "drop_epochs": [20]}))
    assert re.search(r"^momentum = 0.8 +# set; kriz2012 has 0.9$", text, re.MULTILINE)
    assert re.search(r"^drop_epochs = \[20\] +# set; .* \[23, 51, 78\]$", text, re.MULTILINE)
    assert text.count("# set;") == 2
