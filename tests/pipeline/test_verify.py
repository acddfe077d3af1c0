"""Sound shards are sound; damage of what ties them together is named; so is their mix."""

import os
import tarfile
from collections import Counter
from collections.abc import Callable
from math import comb, log2
from pathlib import Path

import pytest

from pipeline.manifest import QUARANTINE_NAME, TIMM_NAME, open_dataset
from pipeline.verify import verify_dataset
from tests.conftest import prepare_here, write_source
from tests.pipeline.harms import HARMS_OF_THE_WHOLE, change_settings, verified


@pytest.mark.parametrize("name", ["shard_folder", "raw_shard_folder"])
def test_prepared_shards_are_sound(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    reports: list[int] = []
    found = verify_dataset(open_dataset(folder), sample=1.0, seed=0, report=reports.append)
    assert found.sound and not found.damaged and not found.other
    assert (found.num_shards, found.num_decoded) == (7, 39 + 15)
    assert reports == list(range(1, 8))


@pytest.mark.parametrize(("harm", "problem"), HARMS_OF_THE_WHOLE)
def test_damage_of_the_whole_is_named(
    shard_copy: Path, harm: Callable[[Path], None], problem: str
) -> None:
    harm(shard_copy)
    found = verified(shard_copy, sample=0)
    assert not found.sound
    assert any(problem in text for text in found.other), found.other


def test_settings_that_are_not_those_of_the_receipts_are_named(shard_copy: Path) -> None:
    change_settings(shard_copy)
    found = verified(shard_copy, sample=0)
    message = "its receipt and dataset.json name different settings; prepare again"
    assert list(found.damaged.values()) == [[message]] * 7


def labels_in(tar: Path) -> "Counter[int]":
    """How many images of each class a shard holds, as its own .cls members say."""
    with tarfile.open(tar) as archive:
        files = [archive.extractfile(m) for m in archive if m.name.endswith(".cls")]
        return Counter(int(file.read()) for file in files if file is not None)


def entropy_bits(counts: "Counter[int]") -> float:
    shares = [count / counts.total() for count in counts.values()]
    return -sum(share * log2(share) for share in shares)


def expected_bits(split: "Counter[int]", size: int) -> float:
    """Of a shard of `size` images drawn from the split: k of a class are hypergeometric."""
    num = split.total()
    return -sum(
        comb(count, k) * comb(num - count, size - k) / comb(num, size) * k / size * log2(k / size)
        for count in split.values()
        for k in range(1, min(count, size) + 1)
    )


@pytest.mark.parametrize("name", ["shard_folder", "sorted_shard_folder"])
def test_the_mix_of_classes_is_that_of_the_labels_in_the_tars(
    name: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    found = verified(folder, sample=0).class_mix
    assert set(found) == {"train", "val"}
    for split, mix in found.items():
        shards = [labels_in(path) for path in sorted(folder.glob(f"{split}-*.tar"))]
        whole = sum(shards, Counter())
        assert (mix.num_groups, mix.num_samples) == (len(shards), whole.total())
        weights = [shard.total() / whole.total() for shard in shards]
        measured = sum(w * entropy_bits(s) for w, s in zip(weights, shards, strict=True))
        by_chance = sum(
            w * expected_bits(whole, s.total()) for w, s in zip(weights, shards, strict=True)
        )
        assert mix.measured_bits == pytest.approx(measured, abs=1e-12)
        assert abs(mix.expected_bits - by_chance) < 5 * mix.deviation_bits / 16**0.5  # of 16 draws
        assert mix.is_sorted == (name == "sorted_shard_folder")


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_what_other_readers_go_by_is_checked(shard_copy: Path, harm: str) -> None:
    path = shard_copy / TIMM_NAME
    path.unlink() if harm == "gone" else path.write_text("{}")
    findings = verified(shard_copy)
    assert not findings.sound and str(path) in findings.other[0]


@pytest.mark.parametrize("form", ["folders", "parquet"])
def test_a_class_that_is_all_in_quarantine_is_a_warning_and_named(
    tmp_path: Path, form: str
) -> None:
    source = write_source(tmp_path / "source", train_per_class=3, val_per_class=1)
    for path in (source / "train/bee").iterdir():
        path.write_bytes(b"no photograph")
    if form == "parquet":
        source = as_parquet(source / "train", tmp_path / "parquet")
    prepare_here(source, tmp_path / "out")
    found = verified(tmp_path / "out")
    assert found.sound
    name = {"folders": "bee", "parquet": "1"}[form]
    assert found.remarks() == [
        "warning: train: 1 of 3 classes have no image, "
        f"theirs are all in {QUARANTINE_NAME}: {name}"
    ]


def as_parquet(folder: Path, root: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = sorted(folder.glob("*/*.jpg"))
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array([{"bytes": path.read_bytes()} for path in paths], image)
    labels = [sorted(os.listdir(folder)).index(path.parent.name) for path in paths]
    root.mkdir()
    table = pyarrow.table({"image": images, "label": labels})
    parquet.write_table(table, root / "train-00000-of-00001.parquet")
    return root
