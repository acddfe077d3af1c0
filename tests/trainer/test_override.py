"""Fields of a preset set by hand: which ones there are, which values they take."""

from pathlib import Path
from typing import Any

import pytest

from trainer.override import (
    FIELDS,
    flatten,
    override,
    parse_settings,
    preset_from_dict,
    read_config,
)
from trainer.preset import LayerRate, Preset
from trainer.presets import KRIZ2012, MODERN, PAPER, PRESETS, describe_preset


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: str(preset.name))
def test_a_preset_survives_its_json_form(preset: Preset) -> None:
    assert preset_from_dict(preset.to_dict()) == preset


def test_a_form_with_a_field_too_few_or_too_many_is_refused_by_name() -> None:
    fields = PAPER.to_dict()
    del fields["training"]["momentum"]
    fields["colour"] = 1
    with pytest.raises(ValueError, match="missing or unknown: colour, training.momentum"):
        preset_from_dict(fields)


def test_a_field_has_one_owner() -> None:
    names = [field.split(".")[1] for field in FIELDS]
    assert len(set(names)) == len(names)


def test_nothing_but_the_fields_named_changes() -> None:
    changed = override(KRIZ2012, {"momentum": 0.5, "network.channels": [48, 128, 192, 192, 256]})
    before, after = flatten(KRIZ2012.to_dict()), flatten(changed.to_dict())
    assert {field for field in after if after[field] != before[field]} == {
        "training.momentum", "network.channels",
    }  # fmt: skip
    assert changed.network.channels == (48, 128, 192, 192, 256)
    assert override(KRIZ2012, {}) == KRIZ2012


def test_settings_of_the_command_line_are_toml_values_or_plain_words() -> None:
    settings = (
        "norm=none", "learning_rate = 1e-3", "training.epochs=3", "training.epochs=4",
        "nesterov=true", 'removed=["conv3", "conv4"]', 'layer_rates=[[0, "conv1", 0.1]]',
    )  # fmt: skip
    preset = override(PAPER, parse_settings(settings))
    assert preset.network.norm == "none" and preset.network.removed == ("conv3", "conv4")
    assert preset.training.learning_rate == 0.001 and preset.training.epochs == 4
    assert preset.training.nesterov and preset.training.layer_rates == (
        LayerRate(0, "conv1", 0.1),
    )


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="--set 'epochs': expected FIELD=VALUE"):
        parse_settings(("epochs",))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("momentun", "did you mean 'momentum'"),
        ("training.epoch", "did you mean 'training.epochs'"),
        ("network.momentum", "did you mean"),
        ("xyz", "--show-preset"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    for call in (lambda: override(PAPER, {name: 1}), lambda: parse_settings((f"{name}=1",))):
        with pytest.raises(ValueError, match=f"no preset field '{name}'; .*{hint}"):
            call()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("training.epochs", 1.5, "a whole number"),
        ("training.epochs", True, "a whole number"),
        ("training.epochs", "inf", "a whole number"),
        ("training.momentum", "high", "a finite number"),
        ("training.learning_rate", float("nan"), "a finite number"),
        ("training.learning_rate", float("inf"), "a finite number"),
        pytest.param(
            "training.learning_rate", 10**400, "within 9,007,199,254,740,992", id="401 digits"
        ),
        ("training.layer_rates", [[-(2**60), "conv1", 1]], "within 9,007,199,254,740,992"),
        ("training.nesterov", 1, "true or false"),
        ("network.norm", 1, "a string"),
        ("network.channels", 96, "a list"),
        ("network.channels", [96, 256, 384, 384, "many"], "a whole number"),
        ("training.layer_rates", [[68, "conv1"]], r"\[68, \"conv1\", 0.1\]"),
        ("training.layer_rates", [[68, "conv1", "low"]], "a finite number"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"{name} (is|has) .*must be {expected}"):
        override(PAPER, {name: value})


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 5000], ids=["digits", "nesting"])
def test_what_no_parser_can_hold_is_refused_like_any_word(text: str) -> None:
    with pytest.raises(ValueError, match="training.epochs is '.*', must be a whole number"):
        override(PAPER, parse_settings((f"epochs={text}",)))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As editors on Windows write it."""
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nepochs = 3\n", encoding="utf-8-sig")
    assert read_config(path) == {"training.epochs": 3}


def test_a_preset_as_shown_can_be_given_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(describe_preset(KRIZ2012).replace("momentum = 0.9", "momentum = 0.7"))
    changed = override(MODERN, read_config(path))
    expected = override(KRIZ2012, {"momentum": 0.7})
    assert changed.to_dict() | {"name": "kriz2012"} == expected.to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nepochs = ", "is no TOML file"),
        pytest.param("x = " + "[" * 5000, "is no TOML file", id="nesting"),
        ("[training]\nepoch = 3", "no preset field 'training.epoch'; did you mean"),
        ("colour = 3", "no preset field 'colour'"),
        ("[colours]\nred = 3", "no preset field 'colours.red'"),
        ("\xff", "is no TOML file"),
        ("[training]\nepochs = 2.5", "training.epochs is 2.5, must be a whole number"),
        ("[training]\ndrop_epochs = [1979-05-27]", "training.drop_epochs is datetime.date"),
        ("[network.columns]\nx = 1", "network.columns is {'x': 1}, must be a whole number"),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"--config .*mine\.toml:? {message}"):
        read_config(path)


def test_an_absent_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--config .*none\.toml cannot be read: No such file"):
        read_config(tmp_path / "none.toml")
