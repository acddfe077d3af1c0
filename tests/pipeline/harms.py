"""Damage of shard folders: of one shard, and of what ties all together; what is said of each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.manifest import DATASET_NAME, QUARANTINE_NAME, open_dataset
from pipeline.moments import MEAN_NAME, PCA_NAME
from pipeline.verify import Findings, verify_dataset
from tests.conftest import cut_file, flip_byte

SHARD, STEM = ("train", 2), "train-000002"  # the one that is harmed


def verified(folder: Path, *, sample: float = 1.0, seed: int = 0) -> Findings:
    dataset = open_dataset(folder, check_sizes=False)
    return verify_dataset(dataset, sample=sample, seed=seed, report=lambda _: None)


def harmed_row(folder: Path) -> np.void:
    rows = open_dataset(folder).index("train")
    row: np.void = rows[rows["shard"] == SHARD[1]][1]
    return row


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
