"""What makes a run what it is, and whose folder it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import open_dataset
from trainer.config import RunConfig
from trainer.description import claim_folder, describe, differences
from trainer.presets import PAPER

DESCRIPTION: dict[str, Any] = {
    "preset": {"name": "modern", "epochs": 90},
    "width": 1.0,
    "classes": ["bee", "cat"],
}


def test_a_folder_is_taken_up_by_the_same_configuration_only(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    claim_folder(folder, DESCRIPTION)
    before = (folder / "config.json").read_bytes()
    assert json.loads(before) == DESCRIPTION
    claim_folder(folder, DESCRIPTION)
    other = DESCRIPTION | {"preset": {"name": "modern", "epochs": 30}, "width": 0.25}
    with pytest.raises(ValueError) as error:
        claim_folder(folder, other)
    assert "preset.epochs is 90, asked for 30; width is 1.0, asked for 0.25" in str(error.value)
    assert (folder / "config.json").read_bytes() == before


def test_the_checkpoint_it_began_with_is_part_of_what_a_run_is(shard_folder: Path) -> None:
    dataset = open_dataset(shard_folder)
    config = RunConfig(shards=shard_folder, init_from=Path("a"), replace_head=True)
    first = describe(config, PAPER, dataset, "11")
    assert first["init_from"] == {"sha256": "11", "replace_head": True}
    changed = differences(first, describe(config, PAPER, dataset, "22"))
    assert changed == ["init_from.sha256 is '11', asked for '22'"]
    assert "init_from" not in describe(RunConfig(shards=shard_folder), PAPER, dataset)


def test_differences_name_fields_on_either_side() -> None:
    assert not differences(DESCRIPTION, dict(DESCRIPTION))
    assert differences({"a": 1}, {"b": 2}) == ["a is 1, asked for None", "b is None, asked for 2"]
    assert differences({"classes": ["a", "b"]}, {"classes": ["a"]}) == [
        "classes are 2 (a, b), asked for 1 (a)"
    ]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="--out .*file/run cannot be written: Not a directory"):
        claim_folder(tmp_path / "file" / "run", DESCRIPTION)


@pytest.mark.parametrize("content", [b"", b'{"preset": ', b"[]", b"\xff"])
def test_a_damaged_configuration_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        claim_folder(tmp_path, DESCRIPTION)
