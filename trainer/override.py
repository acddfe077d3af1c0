"""Presets from plain values: fields set on the command line or in a TOML file, checked by type."""

import dataclasses
import difflib
import math
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trainer.preset import Augmentation, LayerRate, Network, Preset, Training

OWNERS = {"network": Network, "augmentation": Augmentation, "training": Training}
FIELDS: dict[str, Any] = {  # type by dotted name; the part after the dot is unique too
    f"{owner}.{field}": hint
    for owner, kind in OWNERS.items()
    for field, hint in get_type_hints(kind).items()
}
SEE = "trainer/run.py --show-preset modern lists all"
MAX_WHOLE = 2**53  # a float holds every whole number up to it


def override(preset: Preset, changes: dict[str, Any]) -> Preset:
    """The preset with other values in the fields named.

    changes: value by name, "training.epochs" or just "epochs"; lists where a field holds a tuple.
    ValueError naming the field: unknown, with the nearest known one; of the wrong type; out of
    its bounds.
    """
    values = _flat(preset)
    for name, value in changes.items():
        field = _find_field(name)
        values[field] = _convert(field, FIELDS[field], value)
    return _build(preset.name, values)


def preset_from_dict(fields: dict[str, Any]) -> Preset:
    """The inverse of `Preset.to_dict`; ValueError naming fields that are missing or unknown."""
    flat = flatten({key: value for key, value in fields.items() if key != "name"})
    wrong = FIELDS.keys() ^ flat.keys()
    if "name" not in fields or wrong:
        names = sorted(wrong) or ["name"]
        raise ValueError(f"preset fields missing or unknown: {', '.join(names)}")
    values = {name: _convert(name, FIELDS[name], value) for name, value in flat.items()}
    return _build(fields["name"], values)


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Value by name of texts like "epochs=30", of which the last one counts.

    A value is one of TOML's, such as 0.01, true or [48, 128]; anything else is a string.
    ValueError for a text without "=".
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise ValueError(f"--set {setting!r}: expected FIELD=VALUE, such as epochs=30")
        changes[_find_field(name.strip())] = _parse_value(text.strip())
    return changes


def read_config(path: Path) -> dict[str, Any]:
    """Value by dotted name of a TOML file with tables [network], [augmentation], [training].

    ValueError naming the file where it cannot be read, a field is unknown or of the wrong type.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--config {path} is no TOML file: {error}") from error
    try:
        fields = {_find_field(name): value for name, value in flatten(tables).items()}
        return {name: _convert(name, FIELDS[name], value) for name, value in fields.items()}
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from error


def flatten(tables: dict[str, Any]) -> dict[str, Any]:
    """The values of {"network": {"columns": 2}} by dotted name; others keep theirs."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _flat(preset: Preset) -> dict[str, Any]:
    return {
        name: getattr(getattr(preset, owner), field)
        for name in FIELDS
        for owner, field in [name.split(".")]
    }


def _build(name: str, values: dict[str, Any]) -> Preset:
    owners = {
        owner: kind(**{f.name: values[f"{owner}.{f.name}"] for f in dataclasses.fields(kind)})
        for owner, kind in OWNERS.items()
    }
    return Preset(name=name, **owners)


def _find_field(name: str) -> str:
    """The dotted name of a field; ValueError with the nearest one where there is none."""
    for field in FIELDS:
        if name in (field, field.split(".")[1]):
            return field
    known = [*FIELDS, *(field.split(".")[1] for field in FIELDS)]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else SEE
    raise ValueError(f"no preset field {name!r}; {hint}")


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML; too many digits; lists in lists in lists
        return text


def _convert(name: str, kind: Any, value: Any) -> Any:
    """`value` as the field's type; ValueError naming the field where it is of another."""
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} is {value!r}, must be a list such as {_example(parts[0])}")
        return tuple(_convert(name, parts[0], item) for item in value)
    if kind is LayerRate:
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise ValueError(f"{name} has {value!r}, must be {_example(kind)[1:-1]}")
        hints = get_type_hints(LayerRate).values()
        return LayerRate(*(_convert(name, hint, v) for hint, v in zip(hints, value, strict=True)))
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise ValueError(f"{name} is too large, must be within {MAX_WHOLE:,}")
    if kind is float and type(value) is int:
        return float(value)
    expected = str if get_origin(kind) is Literal else kind
    if type(value) is not expected or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}, must be {_WORDS[expected]}")
    return value


def _example(kind: Any) -> str:
    return {int: "[23, 51]", str: '["conv3"]', LayerRate: '[[68, "conv1", 0.1]]'}[kind]


_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a string"}
