"""Every number of every preset, and what a preset refuses."""

import dataclasses
from typing import Any

import pytest

from trainer.presets import MODERN, PAPER, PRESETS, Preset, find_preset

TABLE: dict[str, dict[str, Any]] = {
    "paper": {
        "norm": "response",
        "response_k": 2.0,
        "response_size": 5,
        "response_alpha": 0.0001,
        "response_beta": 0.75,
        "init": "normal",
        "init_std": 0.01,
        "ones_biases": True,
        "dropout": True,
        "mean": "image-at-crop",
        "lighting": "variance",
        "batch_size": 128,
        "learning_rate": 0.01,
        "batch_exponent": 1.0,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0005,
        "decay_vectors": True,
        "rescale_momentum": True,
        "schedule": "plateau",
        "warmup_epochs": 0.0,
        "num_drops": 3,
        "drop_factor": 10.0,
        "patience_epochs": 5,
        "epochs": 90,
        "precision": "fp32",
    },
    "modern": {
        "norm": "batch",
        "response_k": 2.0,
        "response_size": 5,
        "response_alpha": 0.0001,
        "response_beta": 0.75,
        "init": "kaiming",
        "init_std": 0.0,
        "ones_biases": False,
        "dropout": True,
        "mean": "channel",
        "lighting": "std",
        "batch_size": 1024,
        "learning_rate": 0.08,
        "batch_exponent": 0.5,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.0005,
        "decay_vectors": False,
        "rescale_momentum": False,
        "schedule": "cosine",
        "warmup_epochs": 5.0,
        "num_drops": 0,
        "drop_factor": 10.0,
        "patience_epochs": 5,
        "epochs": 90,
        "precision": "bf16",
    },
}


def test_no_number_has_drifted() -> None:
    assert {name: preset.to_dict() for name, preset in PRESETS.items()} == {
        name: {"name": name, **fields} for name, fields in TABLE.items()
    }


@pytest.mark.parametrize("preset", [PAPER, MODERN], ids=lambda preset: str(preset.name))
def test_a_preset_survives_its_json_form(preset: Preset) -> None:
    assert Preset.from_dict(preset.to_dict()) == preset


def test_a_form_with_a_field_too_few_or_too_many_is_refused_by_name() -> None:
    fields = PAPER.to_dict()
    del fields["momentum"]
    with pytest.raises(ValueError, match="missing or unknown: colour, momentum"):
        Preset.from_dict(fields | {"colour": 1})


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'papre' is unknown; expected one of: modern, paper"):
        find_preset("papre")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm", "layer"),
        ("lighting", "on"),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("drop_factor", 1.0),
        ("response_size", 4),
        ("weight_decay", -1.0),
        ("epochs", 0),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"preset paper: {field} is"):
        dataclasses.replace(PAPER, **{field: value})
