"""Every kind of damage of a shard is found, and named of that shard alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pipeline.shard_check
from pipeline.images import ImageError, decode_stored
from tests.pipeline.harms import HARMS_OF_A_SHARD, SHARD, STEM, harmed_row, verified


@pytest.mark.parametrize(("harm", "problem"), HARMS_OF_A_SHARD)
def test_damage_of_a_shard_is_named_and_of_no_other(
    shard_copy: Path, harm: Callable[[Path], None], problem: str
) -> None:
    sample_id = harmed_row(shard_copy)["id"]
    harm(shard_copy)
    found = verified(shard_copy, sample=0)
    assert list(found.damaged) == [SHARD], found.damaged
    assert any(problem.format(id=sample_id) in text for text in found.damaged[SHARD])
    assert not found.other, found.other


def test_a_share_of_the_images_is_decoded_by_seed(shard_folder: Path) -> None:
    counts = [verified(shard_folder, sample=0.4, seed=seed).num_decoded for seed in range(20)]
    assert verified(shard_folder, sample=0.4, seed=3).num_decoded == counts[3]
    assert len(set(counts)) > 3
    assert abs(np.mean(counts) - 0.4 * 54) < 4 * np.sqrt(54 * 0.4 * 0.6 / 20)
    assert verified(shard_folder, sample=0).num_decoded == 0


@pytest.mark.parametrize("sample", [0.0, 1.0])
def test_an_image_that_does_not_decode_is_found_where_it_is_looked_at(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch, sample: float
) -> None:
    row = harmed_row(shard_folder)
    bad = (shard_folder / f"{STEM}.tar").read_bytes()[row["offset"] :][: row["size"]]

    def refuse(data: bytes) -> object:
        if bytes(data) == bad:
            raise ImageError("cannot be decoded")
        return decode_stored(data)

    monkeypatch.setattr(pipeline.shard_check, "decode_stored", refuse)
    found = verified(shard_folder, sample=sample)
    expected = {SHARD: [f"sample {row['id']}: cannot be decoded"]} if sample else {}
    assert found.damaged == expected
