"""Every kind of damage is found and named, and mended byte for byte where the originals are."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipeline.verify
from pipeline.class_mix import shard_mix
from pipeline.engines import run_tasks
from pipeline.images import ImageError, decode_stored
from pipeline.manifest import (
    DATASET_NAME,
    QUARANTINE_NAME,
    TIMM_NAME,
    Dataset,
    open_dataset,
)
from pipeline.moments import MEAN_NAME, PCA_NAME
from pipeline.plan import Settings, plan
from pipeline.repair import repair
from pipeline.sources import open_source
from pipeline.verify import Findings, verify_dataset
from tests.conftest import (
    cut_file,
    encoded,
    flip_byte,
    folder_bytes,
    prepare_here,
    write_source,
)

SHARD, STEM = ("train", 2), "train-000002"  # the one that is harmed


def verified(folder: Path, *, sample: float = 1.0, seed: int = 0) -> Findings:
    dataset = open_dataset(folder, check_sizes=False)
    return verify_dataset(dataset, sample=sample, seed=seed, report=lambda _: None)


def harmed_row(folder: Path) -> np.void:
    rows = open_dataset(folder).index("train")
    row: np.void = rows[rows["shard"] == SHARD[1]][1]
    return row


@pytest.mark.parametrize("name", ["shard_folder", "raw_shard_folder"])
def test_prepared_shards_are_sound(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    reports: list[int] = []
    found = verify_dataset(open_dataset(folder), sample=1.0, seed=0, report=reports.append)
    assert found.sound and not found.damaged and not found.other
    assert (found.num_shards, found.num_decoded) == (7, 39 + 15)
    assert reports == list(range(1, 8))


def flip_in_image(folder: Path) -> None:
    row = harmed_row(folder)
    flip_byte(folder / f"{STEM}.tar", int(row["offset"]) + int(row["size"]) // 2)


def change_label(folder: Path) -> None:
    row = harmed_row(folder)
    label_at = -(-(int(row["offset"]) + int(row["size"])) // 512) * 512 + 512
    path = folder / f"{STEM}.tar"
    data = bytearray(path.read_bytes())
    assert data[label_at : label_at + 1] == str(row["label"]).encode()
    data[label_at] = ord(str((row["label"] + 1) % 3))
    path.write_bytes(data)


def flip_in_padding(folder: Path) -> None:
    flip_byte(folder / f"{STEM}.tar", -1)


def flip_in_header(folder: Path) -> None:
    flip_byte(folder / f"{STEM}.tar", int(harmed_row(folder)["offset"]) - 512 + 3)


def cut_tar(folder: Path) -> None:
    cut_file(folder / f"{STEM}.tar", 3000)


def grow_tar(folder: Path) -> None:
    with open(folder / f"{STEM}.tar", "ab") as file:
        file.write(bytes(512))


def swap_tar(folder: Path) -> None:
    shutil.copy(folder / "train-000001.tar", folder / f"{STEM}.tar")


def empty_tar(folder: Path) -> None:
    (folder / f"{STEM}.tar").write_bytes(b"")


def remove(ending: str) -> Callable[[Path], None]:
    return lambda folder: (folder / f"{STEM}{ending}").unlink()


def flip_in_index_of_dali(folder: Path) -> None:
    flip_byte(folder / f"{STEM}.idx", 20)


def flip_in_sums(folder: Path) -> None:
    flip_byte(folder / f"{STEM}.sums.npz", 5000)


def swap_sums(folder: Path) -> None:
    shutil.copy(folder / "train-000001.sums.npz", folder / f"{STEM}.sums.npz")


def receipt_of_another(folder: Path) -> None:
    path = folder / f"{STEM}.receipt.json"
    receipt = json.loads(path.read_text())
    path.write_text(json.dumps({**receipt, "sha256": "0" * 64}))


HARMS_OF_A_SHARD = [
    pytest.param(flip_in_image, "sample {id}: its bytes are not those written", id="image"),
    pytest.param(change_label, "sample {id}: its .cls is not its label in the index", id="label"),
    pytest.param(flip_in_padding, "SHA-256 is not that of the shard written", id="padding"),
    pytest.param(flip_in_header, f"{STEM}.tar cannot be read as a tar file", id="header"),
    pytest.param(cut_tar, f"{STEM}.tar cannot be read as a tar file (cut off", id="cut"),
    pytest.param(grow_tar, "bytes, ", id="grown"),
    pytest.param(swap_tar, "its members are not those of the index", id="swapped"),
    pytest.param(empty_tar, f"{STEM}.tar cannot be read as a tar file", id="emptied"),
    pytest.param(remove(".tar"), "No such file", id="no tar"),
    pytest.param(remove(".receipt.json"), "its receipt is missing", id="no receipt"),
    pytest.param(receipt_of_another, "its receipt and dataset.json disagree", id="receipt"),
    pytest.param(remove(".idx"), "its DALI index cannot be read: No such file", id="no idx"),
    pytest.param(flip_in_index_of_dali, "its DALI index is not that of its samples", id="idx"),
    pytest.param(remove(".sums.npz"), "its sums cannot be read: ", id="no sums"),
    pytest.param(flip_in_sums, "its sums cannot be read: ", id="sums"),
    pytest.param(swap_sums, "the index rows beside it are not those of the split", id="rows"),
]


@pytest.mark.parametrize(("harm", "problem"), HARMS_OF_A_SHARD)
def test_damage_of_a_shard_is_named_and_of_no_other(
    shard_copy: Path, harm: Callable[[Path], None], problem: str
) -> None:
    sample_id = harmed_row(shard_copy)["id"]
    harm(shard_copy)
    found = verified(shard_copy, sample=0)
    assert not found.sound and list(found.damaged) == [SHARD]
    assert any(problem.format(id=sample_id) in text for text in found.damaged[SHARD])
    assert not found.other


@pytest.mark.parametrize(("harm", "problem"), HARMS_OF_A_SHARD)
def test_a_repair_makes_the_damaged_shard_as_it_was_and_touches_no_other(
    image_folder: Path,
    shard_folder: Path,
    shard_copy: Path,
    harm: Callable[[Path], None],
    problem: str,
) -> None:
    del problem
    harm(shard_copy)
    before = {path.name: path.stat().st_mtime_ns for path in shard_copy.glob("*-00000?.*")}
    repaired = repaired_from(image_folder, shard_copy)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)
    after = {path.name: path.stat().st_mtime_ns for path in shard_copy.glob("*-00000?.*")}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"{STEM}.{end}" for end in ("tar", "idx", "sums.npz", "receipt.json")}
    assert verify_dataset(repaired, sample=1, seed=0, report=lambda _: None).sound


def repaired_from(source: Path, folder: Path) -> Dataset:
    dataset = open_dataset(folder, check_sizes=False)
    damaged = list(verified(folder).damaged)
    return repair(
        open_source(source), dataset, damaged, lambda shards: run_tasks(shards, 1, lambda _: None)
    )


def change_dataset(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    text = json.loads((folder / DATASET_NAME).read_text())
    change(text)
    (folder / DATASET_NAME).write_text(json.dumps(text))


def change_train(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_dataset(
        folder, lambda text: text["splits"]["train"].update(values)
    )


def change_samples(folder: Path) -> None:
    change_dataset(
        folder, lambda text: text["splits"]["train"]["shards"][0].update(samples=1000)
    )


def change_settings(folder: Path) -> None:
    change_dataset(folder, lambda text: text["settings"].update(orientation="ignored"))


def more_classes(folder: Path) -> None:
    change_dataset(folder, lambda text: text["classes"].append("dog"))


def fewer_classes(folder: Path) -> None:
    change_dataset(folder, lambda text: text["classes"].pop())


def foreign_pca(folder: Path) -> None:
    path = folder / PCA_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 64}))


def other_mean(folder: Path) -> None:
    np.save(folder / MEAN_NAME, np.load(folder / MEAN_NAME) + np.float32(1))


def other_axes(folder: Path) -> None:
    path = folder / PCA_NAME
    text = json.loads(path.read_text())
    text["eigenvectors"][0].reverse()
    path.write_text(json.dumps(text))


def quarantine_less(folder: Path) -> None:
    path = folder / QUARANTINE_NAME
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def quarantine_a_written_one(folder: Path) -> None:
    path = folder / QUARANTINE_NAME
    first, *others = path.read_text().splitlines(keepends=True)
    entry = json.loads(first) | {"id": int(harmed_row(folder)["id"])}
    path.write_text(json.dumps(entry) + "\n" + "".join(others))


HARMS_OF_THE_WHOLE = [
    (lambda folder: flip_byte(folder / "train.index.npy", -5), "train.index.npy is damaged"),
    (lambda folder: (folder / "val.index.npy").unlink(), "val.index.npy cannot be read"),
    (lambda folder: (folder / QUARANTINE_NAME).unlink(), "quarantine.jsonl cannot be read"),
    (lambda folder: (folder / QUARANTINE_NAME).write_text("{"), "quarantine.jsonl cannot be read"),
    (
        lambda folder: (folder / QUARANTINE_NAME).write_text("[" * 100_000),
        "quarantine.jsonl cannot be read",
    ),
    (quarantine_less, "quarantine.jsonl lists 1 originals of train, dataset.json says 2"),
    (quarantine_a_written_one, "train: a quarantined original is in a shard as well"),
    (change_train(found=40), "train: found 40 is not written 39 + quarantined 2"),
    (change_train(quarantined=0, found=39), "lists 2 originals of train, dataset.json says 0"),
    (change_train(fingerprint="0" * 64), "train: the fingerprint is not that of the shards"),
    (change_samples, "train: the shards' samples do not add up to 39"),
    (change_train(written=38, quarantined=3), "train.index.npy has 39 rows, dataset.json says 38"),
    (more_classes, "train: 1 of 4 classes have no image: dog"),
    (fewer_classes, "train: labels go beyond the 2 classes"),
    (foreign_pca, PCA_NAME),
    (other_mean, "are not what the sums beside the shards give; run: tools/compute_pca.py"),
    (other_axes, "are not what the sums beside the shards give; run: tools/compute_pca.py"),
]


@pytest.mark.parametrize(("harm", "problem"), HARMS_OF_THE_WHOLE)
def test_damage_of_the_whole_is_named(
    shard_copy: Path, harm: Callable[[Path], None], problem: str
) -> None:
    harm(shard_copy)
    found = verified(shard_copy, sample=0)
    assert not found.sound
    assert any(problem in text for text in found.other), found.other


@pytest.mark.parametrize(("harm", "problem"), HARMS_OF_THE_WHOLE[:-3])
def test_a_repair_writes_anew_what_ties_the_shards_together(
    image_folder: Path,
    shard_folder: Path,
    shard_copy: Path,
    harm: Callable[[Path], None],
    problem: str,
) -> None:
    del problem
    harm(shard_copy)
    repaired_from(image_folder, shard_copy)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


@pytest.mark.parametrize(
    "name",
    [
        "train.index.npy",
        QUARANTINE_NAME,
    ],
)
def test_a_repair_mends_damage_of_shards_and_of_the_whole_at_once(
    image_folder: Path, shard_folder: Path, shard_copy: Path, name: str
) -> None:
    (shard_copy / name).unlink()
    remove(".receipt.json")(shard_copy)
    repaired_from(image_folder, shard_copy)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


def test_settings_that_are_not_those_of_the_receipts_are_named(shard_copy: Path) -> None:
    change_settings(shard_copy)
    found = verified(shard_copy, sample=0)
    message = "its receipt and dataset.json name different settings; prepare again"
    assert list(found.damaged.values()) == [[message]] * 7


def test_another_source_repairs_nothing(tmp_path: Path, shard_copy: Path) -> None:
    flip_in_image(shard_copy)
    before = folder_bytes(shard_copy)
    other = write_source(tmp_path / "other")
    with pytest.raises(ValueError, match="--fresh to remove the shards there and start over"):
        repaired_from(other, shard_copy)
    assert folder_bytes(shard_copy) == before


def test_originals_of_other_bytes_repair_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=4, val_per_class=1)
    out = tmp_path / "out"
    prepare_here(source, out, images_per_shard=3)
    flip_byte(out / "train-000001.tar", 700)
    before = folder_bytes(out)
    other = encoded(Image.new("RGB", (60, 60), (200, 30, 90)))
    for path in (source / "train").rglob("*.jpg"):
        path.write_bytes(other.ljust(path.stat().st_size, b"\0"))  # as large as before
    with pytest.raises(ValueError, match="was made from other bytes of train/"):
        repaired_from(source, out)
    assert folder_bytes(out) == before


def test_a_lost_shard_whose_originals_are_others_now_is_not_replaced(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=4, val_per_class=1)
    out = tmp_path / "out"
    prepare_here(source, out, images_per_shard=3)
    (out / "train-000001.tar").unlink()
    before = folder_bytes(out)
    shards = plan(open_source(source), out, Settings(images_per_shard=3))
    (lost,) = (s for s in shards if (s.split, s.number) == ("train", 1))
    original = source / os.fsdecode(lost.task().originals.names[0])
    other = encoded(Image.new("RGB", (60, 60), (200, 30, 90)))
    original.write_bytes(other.ljust(original.stat().st_size, b"\0"))
    with pytest.raises(ValueError, match=r"train-000001.tar, made from .* has SHA-256"):
        repaired_from(source, out)
    assert folder_bytes(out) == before


def test_a_split_that_came_after_the_preparation_does_not_hinder_a_repair(
    image_folder: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "train").symlink_to(image_folder / "train")
    prepare_here(source, out)
    before = folder_bytes(out)
    (source / "val").symlink_to(image_folder / "val")
    flip_byte(out / f"{STEM}.tar", 700)
    repaired_from(source, out)
    assert folder_bytes(out) == before


def test_an_original_that_is_readable_now_does_not_hinder_the_repair_of_another_shard(
    tmp_path: Path
) -> None:
    source, out = write_source(tmp_path / "source", train_per_class=4), tmp_path / "out"
    target = source / "train/bee/01.jpg"
    moved = target.rename(tmp_path / "away.jpg")
    target.symlink_to(moved.with_name("gone.jpg"))
    prepare_here(source, out, images_per_shard=3)
    before = folder_bytes(out)
    receipts = [json.loads(path.read_text()) for path in sorted(out.glob("train-*.receipt.json"))]
    unreadable = [bool(receipt["quarantined"]) for receipt in receipts].index(True)
    moved.rename(moved.with_name("gone.jpg"))
    flip_byte(out / f"train-{(unreadable + 1) % len(receipts):06d}.tar", 700)
    repaired_from(source, out)
    assert folder_bytes(out) == before


def test_what_a_killed_repair_left_goes_with_the_next_one(
    image_folder: Path, shard_folder: Path, shard_copy: Path
) -> None:
    left = shard_copy / ".repair-abcdefgh"
    left.mkdir()
    (left / "train-000000.tar").write_bytes(bytes(1000))
    flip_in_image(shard_copy)
    repaired_from(image_folder, shard_copy)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


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

    monkeypatch.setattr(pipeline.verify, "decode_stored", refuse)
    found = verified(shard_folder, sample=sample)
    expected = {SHARD: [f"sample {row['id']}: cannot be decoded"]} if sample else {}
    assert found.damaged == expected


def test_the_mix_of_classes_is_told_of_each_split(shard_folder: Path) -> None:
    dataset = open_dataset(shard_folder)
    expected = {split: shard_mix(dataset.index(split)) for split in ("train", "val")}
    assert verified(shard_folder, sample=0).class_mix == expected


def test_settings_are_read_back_as_they_were_written(
    shard_folder: Path, raw_shard_folder: Path
) -> None:
    for folder in (shard_folder, raw_shard_folder):
        written = open_dataset(folder).settings
        assert Settings.from_dict(written).as_dict() == written


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_what_other_readers_go_by_is_checked_and_mended(
    image_folder: Path, shard_folder: Path, shard_copy: Path, harm: str
) -> None:
    path = shard_copy / TIMM_NAME
    path.unlink() if harm == "gone" else path.write_text("{}")
    findings = verified(shard_copy)
    assert not findings.sound and str(path) in findings.other[0]
    repaired_from(image_folder, shard_copy)
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


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
