"""A shard exists while its receipt is valid: whole, of this format, and of the files beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.receipt import canonical_hash, read_receipt
from tests.conftest import cut_file, flip_byte
from tests.pipeline.conftest import rewrite

Change = Callable[[Path], object]


def change_method(path: Path) -> None:
    """Makes the last member of a zip file one of a compression that nobody has."""
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 10] = 99
    path.write_bytes(data)


RECEIPT = "train-000002.receipt.json"


SPOILT: dict[str, Change] = {
    "missing": lambda folder: (folder / RECEIPT).unlink(),
    "cut": lambda folder: cut_file(folder / RECEIPT, 20),
    "emptied": lambda folder: (folder / RECEIPT).write_bytes(b""),
    "no text": lambda folder: flip_byte(folder / RECEIPT, 10),
    "brackets without end": lambda folder: (folder / RECEIPT).write_text("[" * 100_000),
    "a list": lambda folder: (folder / RECEIPT).write_text("[]"),
    "another split": lambda folder: rewrite(folder / RECEIPT, split="val"),
    "samples that are no number": lambda folder: rewrite(folder / RECEIPT, samples=None),
    "quarantined without reason": lambda folder: rewrite(folder / RECEIPT, quarantined=[{}]),
    "settings of another hash": lambda folder: rewrite(folder / RECEIPT, settings={}),
    "sums of another layout": lambda folder: change_method(folder / "train-000002.sums.npz"),
    "other fields": lambda folder: rewrite(folder / RECEIPT, colour="red"),
    "other format": lambda folder: rewrite(folder / RECEIPT, format_version=0),
    "tar missing": lambda folder: (folder / "train-000002.tar").unlink(),
    "tar cut": lambda folder: cut_file(folder / "train-000002.tar", 1),
    "sums missing": lambda folder: (folder / "train-000002.sums.npz").unlink(),
    "index missing": lambda folder: (folder / "train-000002.idx").unlink(),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_shard_without_a_valid_receipt_does_not_exist(shard_copy: Path, spoil: str) -> None:
    assert read_receipt(shard_copy, "train", 2) is not None
    SPOILT[spoil](shard_copy)
    assert read_receipt(shard_copy, "train", 2) is None
    assert read_receipt(shard_copy, "train", 1) is not None


def test_the_canonical_hash_ignores_the_order_of_keys_only() -> None:
    assert canonical_hash({"a": 1, "b": [1, 2]}) == canonical_hash({"b": [1, 2], "a": 1})
    assert canonical_hash({"a": 1, "b": [1, 2]}) != canonical_hash({"a": 1, "b": [2, 1]})
