"""Fifteen million samples, ImageNet-21k's size: opened, ordered and proven in seconds."""

import itertools
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from isal.isal_zlib import crc32

from pipeline.images import ImageFormat, encode, fit
from pipeline.loader import Loader, LoaderConfig
from pipeline.manifest import Dataset, Shard, Split, fingerprint, open_dataset, write_dataset
from pipeline.order import Window, order
from pipeline.shards import BLOCK_BYTES, INDEX_DTYPE, write_index
from tests.conftest import photograph
from tools.verify_shards import main as verify_shards

NUM_SHARDS, PER_SHARD, NUM_CLASSES = 15_000, 1_000, 21_841
BATCH_SIZE = 64  # of what a loader opens and renders: 38 MB
SLOT_BYTES = 36 * BLOCK_BYTES  # an image with two headers and a label

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def huge_folder(
    shard_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A true index of 15 million samples beside shards that are links to one.

    That one has the same image at every place of a sample.
    """
    folder = tmp_path_factory.mktemp("huge")
    num_samples = NUM_SHARDS * PER_SHARD
    rng = np.random.default_rng(0)
    rows = np.zeros(num_samples, INDEX_DTYPE)
    rows["shard"] = np.repeat(np.arange(NUM_SHARDS), PER_SHARD)
    rows["offset"] = np.tile(BLOCK_BYTES + SLOT_BYTES * np.arange(PER_SHARD), NUM_SHARDS)
    image = encode(fit(photograph(rng, 300, 280)), ImageFormat())
    assert len(image) <= SLOT_BYTES - 3 * BLOCK_BYTES
    rows["size"], rows["crc32"] = len(image), crc32(image)
    rows["label"] = rng.integers(0, NUM_CLASSES, num_samples)
    rows["id"] = rng.permutation(num_samples)
    num_bytes = SLOT_BYTES * PER_SHARD + 2 * BLOCK_BYTES
    shards = tuple(
        Shard(name=f"train-{i:06d}.tar", samples=PER_SHARD, bytes=num_bytes, sha256=f"{i:064x}")
        for i in range(NUM_SHARDS)
    )
    slot = bytes(BLOCK_BYTES) + image.ljust(SLOT_BYTES - BLOCK_BYTES, b"\0")
    (folder / shards[0].name).write_bytes((slot * PER_SHARD).ljust(num_bytes, b"\0"))
    for shard in shards[1:]:
        (folder / shard.name).hardlink_to(folder / shards[0].name)
    split = Split(
        shards=shards, found=num_samples, written=num_samples, quarantined=0, enlarged=0,
        source_bytes=1, fingerprint=fingerprint(shards),
        index_sha256=write_index(folder, "train", rows),
    )  # fmt: skip
    classes = tuple(f"n{i:08d}" for i in range(NUM_CLASSES))
    settings = open_dataset(shard_folder).settings
    write_dataset(Dataset(folder=folder, classes=classes, settings=settings,
                          splits={"train": split}))  # fmt: skip
    del rows
    yield folder
    shutil.rmtree(folder)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function where nothing else has taken memory yet."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_bytes() -> int:
    """The most memory this process ever had resident."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return 1024 * int(line.split()[1])


def open_and_order(folder: Path, window: Window) -> tuple[float, float, int]:
    """Seconds of CPU to open a loader, to order another epoch; the peak of memory after steps."""
    start = time.process_time()
    config = LoaderConfig(
        shards=folder, batch_size=BATCH_SIZE, lighting="off", backend="numpy", window=window
    )
    with Loader(config) as loader:
        opened = time.process_time()
        sizes = [shard.samples for shard in loader.dataset.split("train").shards]
        rows = order(sizes, 0, 1, window)
        ordered = time.process_time()
        assert len(rows) == NUM_SHARDS * PER_SHARD
        for batch in itertools.islice(loader, 3):
            assert len(set(batch.ids.tolist())) == BATCH_SIZE
        return opened - start, ordered - opened, peak_bytes()


def verify_epoch(folder: Path, ledger: Path) -> tuple[int, str, int]:
    """Exit code and output of the proof of an epoch; the peak of memory."""
    options = ["--epoch", 3, "--world-size", 8, "--batch-size", 1024, "--ledger", ledger]
    done = CliRunner().invoke(verify_shards, [str(each) for each in (folder, *options)])
    return done.exit_code, done.output, peak_bytes()


@pytest.mark.parametrize("window", ["all", 1, 16])
def test_a_loader_opens_and_orders_within_memory(huge_folder: Path, window: Window) -> None:
    """And says, with pytest -s, how much of a core's time that takes."""
    opening, ordering, peak = in_fresh_process(open_and_order, huge_folder, window)
    print(f"open {opening:.2f} s, order {ordering:.2f} s of CPU, {peak / 1e9:.2f} GB")
    assert peak < 1.5e9


def test_an_epoch_is_proven_within_memory(huge_folder: Path, tmp_path: Path) -> None:
    code, output, peak = in_fresh_process(verify_epoch, huge_folder, tmp_path / "ledger.jsonl")
    assert code == 0, output
    assert "117,184 parts of 14,648 steps, 14,999,552 distinct samples, 448 missing" in output
    assert peak < 2e9
    (tmp_path / "ledger.jsonl").unlink()
