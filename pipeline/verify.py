"""Whether a shard folder is what it says: each of its shards, and what ties them together."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipeline.class_mix import ClassMix, shard_mix
from pipeline.cores import available_cores
from pipeline.manifest import QUARANTINE_NAME, TIMM_NAME, Dataset, fingerprint, timm_info
from pipeline.moments import (
    MEAN_NAME,
    PCA_NAME,
    read_statistics,
    same_statistics,
    statistics,
)
from pipeline.shard_check import check_shard
from pipeline.shards import INDEX_DTYPE, Index, read_rows
from pipeline.totals import merge_sums


@dataclass
class Findings:
    """What a verification found: damage by shard, damage of the whole, and what it looked at."""

    damaged: dict[tuple[str, int], list[str]] = field(default_factory=dict)  # (split, number)
    other: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # nothing damaged, but worth knowing
    num_shards: int = 0
    num_decoded: int = 0
    class_mix: dict[str, ClassMix] = field(default_factory=dict)  # split -> of its shards

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and not self.other

    def remarks(self) -> list[str]:
        """What is to be said of the whole, a line each."""
        wrong = [f"wrong: {problem}" for problem in self.other]
        return wrong + [f"warning: {warning}" for warning in self.warnings]


def verify_dataset(
    dataset: Dataset, *, sample: float, seed: int, report: Callable[[int], None]
) -> Findings:
    """Checks every shard against its receipt, its index and itself, and the folder as a whole.

    sample: the share of the images, 0..1, that is decoded (which ones: by `seed`); everything else
    is checked in full. report: called in this thread with the number of shards done.
    """
    findings = Findings()
    for split, account in dataset.splits.items():
        try:
            rows = dataset.index(split)
        except ValueError as error:
            findings.other.append(str(error))
            rows = _rows_beside_shards(dataset, split)
        _check_counts(dataset, split, rows, findings)
        numbers = range(len(account.shards))
        with ThreadPoolExecutor(available_cores()) as pool:  # hashing and decoding free the GIL
            checks = pool.map(
                lambda number: check_shard(dataset, split, number, rows, sample, seed), numbers
            )
            for number, (problems, num_decoded) in zip(numbers, checks, strict=True):
                if problems:
                    findings.damaged[split, number] = problems
                findings.num_decoded += num_decoded
                findings.num_shards += 1
                report(findings.num_shards)
        if len(rows):
            findings.class_mix[split] = shard_mix(rows)
    _check_statistics(dataset, findings)
    _check_info(dataset, findings)
    return findings


def _rows_beside_shards(dataset: Dataset, split: str) -> Index:
    """The index rows that lie beside each shard, of those shards where they can be read."""
    parts = [np.empty(0, INDEX_DTYPE)]
    for number in range(len(dataset.splits[split].shards)):
        try:
            parts.append(read_rows(dataset.folder, split, number))
        except (OSError, ValueError):
            pass  # the check of that shard reports it
    return np.concatenate(parts)


def _check_counts(dataset: Dataset, split: str, rows: Index, findings: Findings) -> None:
    account = dataset.splits[split]
    if account.found != account.written + account.quarantined:
        findings.other.append(
            f"{split}: found {account.found} is not written {account.written} + quarantined "
            f"{account.quarantined}"
        )
    if fingerprint(account.shards) != account.fingerprint:
        findings.other.append(f"{split}: the fingerprint is not that of the shards' SHA-256")
    if sum(shard.samples for shard in account.shards) != account.written:
        findings.other.append(f"{split}: the shards' samples do not add up to {account.written}")
    ids = rows["id"]
    if len(np.unique(ids)) != len(ids):
        findings.other.append(f"{split}: a sample id occurs twice")
    labels = np.unique(rows["label"])
    if len(labels) and not (labels[0] >= 0 and labels[-1] < len(dataset.classes)):
        findings.other.append(f"{split}: labels go beyond the {len(dataset.classes)} classes")
    quarantined = _quarantined(dataset, split, findings)
    if split == "train":
        _check_classes(dataset, set(labels.tolist()), quarantined, findings)
    if len(quarantined) != account.quarantined:
        findings.other.append(
            f"{QUARANTINE_NAME} lists {len(quarantined)} originals of {split}, dataset.json says "
            f"{account.quarantined}"
        )
    if quarantined.keys() & set(ids.tolist()):
        findings.other.append(f"{split}: a quarantined original is in a shard as well")


def _check_classes(
    dataset: Dataset, labels: set[int], quarantined: dict[int, str], findings: Findings
) -> None:
    """Classes of train without an image: nothing wrong where theirs are all in quarantine."""
    # A class is listed for images it had: a path tells which, a row of a parquet file does not.
    known = {part for source in quarantined.values() for part in source.split("/")[:-1]}
    any_class = any(".parquet#" in source for source in quarantined.values())
    missing = [name for label, name in enumerate(dataset.classes) if label not in labels]
    emptied = [name for name in missing if any_class or name in known]
    lost = [name for name in missing if name not in emptied]
    what = f"of {len(dataset.classes)} classes have no image"
    if emptied:
        shown = ", ".join(emptied[:5])
        findings.warnings.append(
            f"train: {len(emptied)} {what}, theirs are all in {QUARANTINE_NAME}: {shown}"
        )
    if lost:
        findings.other.append(f"train: {len(lost)} {what}: {', '.join(lost[:5])}")


def _quarantined(dataset: Dataset, split: str, findings: Findings) -> dict[int, str]:
    """What a split's quarantine lists: the source's name by sample id."""
    path = dataset.folder / QUARANTINE_NAME
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        return {int(e["id"]): str(e["source"]) for e in entries if e["split"] == split}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        findings.other.append(f"{path} cannot be read: {error}")
        return {}


def _check_statistics(dataset: Dataset, findings: Findings) -> None:
    """PCA and mean, where there are any, must belong to these shards, and be right."""
    if not (dataset.folder / PCA_NAME).exists():
        return
    try:
        found = read_statistics(dataset.folder, dataset.fingerprint("train"))
    except ValueError as error:
        findings.other.append(str(error))
        return
    try:
        expected = statistics(merge_sums(dataset, "train"), found.fingerprint)
    except ValueError:
        return  # the check of a shard reported it
    if not same_statistics(found, expected):
        findings.other.append(
            f"{dataset.folder / PCA_NAME} and {MEAN_NAME} are not what the sums beside the shards "
            f"give; run: tools/compute_pca.py {dataset.folder}"
        )


def _check_info(dataset: Dataset, findings: Findings) -> None:
    """What other readers take for the list of shards must be it."""
    path = dataset.folder / TIMM_NAME
    try:
        if path.read_bytes() != timm_info(dataset):
            findings.other.append(f"{path} does not say what dataset.json says")
    except OSError as error:
        findings.other.append(f"{path} cannot be read: {error.strerror}")
