"""Whether one shard is what it says: every byte, every image, and the files beside it."""

import hashlib

import numpy as np
from isal.isal_zlib import crc32

from pipeline.archives import Member, members
from pipeline.images import ImageError, decode_stored
from pipeline.manifest import Dataset, Shard
from pipeline.receipt import canonical_hash, read_receipt
from pipeline.shards import (
    COMPONENTS,
    NUM_KEY_DIGITS,
    Index,
    dali_index_path,
    dali_index_text,
    read_rows,
    read_sums,
)

MIX_TAG = 0x766572696679  # "verify"


def check_shard(
    dataset: Dataset, split: str, number: int, rows: Index, sample: float, seed: int
) -> tuple[list[str], int]:
    """What is wrong with one shard, and how many of its images were decoded.

    rows: the split's index. sample: the share of the images, 0..1, that is decoded, chosen by
    `seed`; everything else is checked in full.
    """
    shard = dataset.splits[split].shards[number]
    path = dataset.folder / shard.name
    own = rows[rows["shard"] == number]
    problems = _check_files(dataset, split, number, own)
    try:
        data = path.read_bytes()
        found = members(path, data)
    except (OSError, ValueError) as error:
        return [*problems, str(error)], 0
    if len(data) != shard.bytes:
        problems.append(f"{len(data)} bytes, {shard.bytes} were written")
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        problems.append("SHA-256 is not that of the shard written")
    if not _has_layout(dataset, found, own):
        return [*problems, "its members are not those of the index"], 0
    generator = np.random.default_rng([seed, number, MIX_TAG])
    chosen = generator.random(len(own)) < sample
    view = memoryview(data)
    for row, member, decoded in zip(own, found[1::2], chosen, strict=True):
        problem = _check_sample(view, row, member, decode=bool(decoded))
        if problem:
            problems.append(problem)
    return problems, int(chosen.sum())


def _check_sample(
    data: memoryview, row: np.void, label: Member, *, decode: bool
) -> str | None:
    start = int(row["offset"])
    encoded = data[start : start + int(row["size"])]
    if crc32(encoded) != row["crc32"]:
        return f"sample {row['id']}: its bytes are not those written"
    if bytes(data[label.offset : label.offset + label.size]) != str(row["label"]).encode():
        return f"sample {row['id']}: its .cls is not its label in the index"
    if decode:
        try:
            decode_stored(encoded)
        except ImageError as error:
            return f"sample {row['id']}: {error}"
    return None


def _has_layout(dataset: Dataset, found: list[Member], own: Index) -> bool:
    """Whether a tar's members are, in order, the index's images each followed by its label."""
    component = COMPONENTS[dataset.encoding]
    expected: list[tuple[bytes, int | None, int]] = []
    for row in own:
        key = f"{int(row['id']):0{NUM_KEY_DIGITS}d}"
        expected.append((f"{key}.{component}".encode(), int(row["offset"]), int(row["size"])))
        expected.append((f"{key}.cls".encode(), None, len(str(row["label"]))))
    return len(found) == len(expected) and all(
        member.name == name and member.size == size and offset in (None, member.offset)
        for member, (name, offset, size) in zip(found, expected, strict=True)
    )


def _check_files(dataset: Dataset, split: str, number: int, own: Index) -> list[str]:
    """What is wrong with the files beside a shard: receipt, sums and rows, DALI's index."""
    folder, shard = dataset.folder, dataset.splits[split].shards[number]
    problems = []
    receipt = read_receipt(folder, split, number)
    if receipt is None:
        problems.append("its receipt is missing, or another file of the shard is")
    elif Shard(
        name=receipt.shard, samples=receipt.samples, bytes=receipt.bytes, sha256=receipt.sha256
    ) != shard:
        problems.append("its receipt and dataset.json disagree")
    elif receipt.settings_hash != canonical_hash(dict(dataset.settings)):
        problems.append("its receipt and dataset.json name different settings; prepare again")
    try:
        if not np.array_equal(read_rows(folder, split, number), own):
            problems.append("the index rows beside it are not those of the split's index")
        if read_sums(folder, split, number).num_images != len(own):
            problems.append("its sums are over another number of images")
    except (OSError, ValueError, KeyError, EOFError) as error:
        problems.append(f"its sums cannot be read: {error}")
    try:
        text = dali_index_path(folder, split, number).read_bytes()
    except OSError as error:
        problems.append(f"its DALI index cannot be read: {error.strerror}")
    else:
        if text != dali_index_text(own, COMPONENTS[dataset.encoding]):
            problems.append("its DALI index is not that of its samples")
    return problems
