"""Steps are delivered in order, errors name their cause, and interrupts harm nothing."""

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from isal.isal_zlib import crc32

from pipeline.loader_config import LoaderConfig
from pipeline.handover import Handover
from pipeline.manifest import open_dataset, write_dataset
from pipeline.order import order
from pipeline.prefetcher import Prefetcher
from pipeline.reference import NumpyBackend
from pipeline.renderer import Renderer
from pipeline.shards import write_index
from pipeline.steps import Steps
from pipeline.waits import WaitClock
from tests.conftest import flip_byte
from tests.pipeline.conftest import BATCH, Open, kept

STORM = Path(__file__).with_name("storm.py")


@pytest.fixture
def prefetcher(shard_folder: Path) -> Iterator[Prefetcher]:
    """Of unlit training batches of 8 by the numpy backend, three steps at a time."""
    config = LoaderConfig(
        shards=shard_folder, batch_size=BATCH, backend="numpy", threads=2, lighting="off"
    )
    dataset = open_dataset(shard_folder)
    index = dataset.index("train")
    handover = Handover("cpu")
    renderer = Renderer(config, dataset.encoding, handover)
    steps = Steps(config, index, [s.samples for s in dataset.split("train").shards], None)
    clock = WaitClock(handover.device)
    made = Prefetcher(config, dataset, index, steps, renderer, handover, clock)
    yield made
    made.close()


@pytest.mark.parametrize("first", [0, 2, 3])
def test_the_steps_of_an_epoch_come_in_order_from_any_of_them_on(
    prefetcher: Prefetcher, shard_folder: Path, opened: Open, first: int
) -> None:
    expected = [kept(batch) for batch in opened(shard_folder, lighting="off")]
    assert [kept(batch) for batch in prefetcher.batches(0, first)] == expected[first:]


def test_stopped_anywhere_it_delivers_another_epoch_whole(
    prefetcher: Prefetcher, shard_folder: Path, opened: Open
) -> None:
    loader = opened(shard_folder, lighting="off")
    epochs = [[kept(batch) for batch in loader] for _ in range(2)]
    for num_taken in range(4):
        iterator = prefetcher.batches(num_taken % 2, 0)
        found = [kept(next(iterator)) for _ in range(num_taken)]
        assert found == epochs[num_taken % 2][:num_taken]
        prefetcher.stop()
    assert [kept(batch) for batch in prefetcher.batches(1, 0)] == epochs[1]


@pytest.mark.parametrize("pause_ms", [3, pytest.param(15, marks=pytest.mark.slow)])
def test_in_a_storm_of_interrupts_nothing_hangs_and_the_next_batch_is_the_right_one(
    shard_folder: Path, backend: str, pause_ms: int
) -> None:
    """Ctrl-C every few ms, wherever the loader is: before the first batch, or between batches."""
    command = [sys.executable, str(STORM), str(shard_folder), backend, str(pause_ms)]
    folder = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    num_interrupts, num_checked = map(int, done.stdout.split())
    assert num_interrupts > 30 and num_checked == 30


def test_a_shard_damaged_under_the_loader_is_named_and_nothing_hangs(
    shard_copy: Path, backend: str, opened: Open
) -> None:
    dataset = open_dataset(shard_copy)
    rows = order([shard.samples for shard in dataset.split("train").shards], seed=0, epoch=0)
    row = dataset.index("train")[rows[3 * BATCH + 2]]  # of the last step
    path = shard_copy / f"train-{row['shard']:06d}.tar"
    loader = opened(shard_copy, backend=backend, prefetch=1)
    original = path.read_bytes()
    flip_byte(path, int(row["offset"]) + 60)
    delivered = []
    with pytest.raises(ValueError, match=rf"{path}, sample {row['id']}: its bytes are"):
        for batch in loader:
            delivered.append(batch.ids.tolist())
    assert len(delivered) == loader.step < len(loader)
    path.write_bytes(original)  # mended: the loader goes on where it was
    delivered += [batch.ids.tolist() for batch in loader]
    assert delivered == [batch.ids.tolist() for batch in opened(shard_copy)]


def test_bytes_as_written_that_are_no_image_name_shard_and_sample(
    shard_copy: Path, backend: str, opened: Open
) -> None:
    dataset = open_dataset(shard_copy)
    rows = dataset.index("train").copy()
    path = shard_copy / f"train-{rows[20]['shard']:06d}.tar"
    data = bytearray(path.read_bytes())
    start, end = int(rows[20]["offset"]), int(rows[20]["offset"] + rows[20]["size"])
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    rows["crc32"][20] = crc32(bytes(end - start))
    split = dataclasses.replace(
        dataset.split("train"), index_sha256=write_index(shard_copy, "train", rows)
    )
    splits = {**dataset.splits, "train": split}
    write_dataset(dataclasses.replace(dataset, splits=splits))
    loader = opened(shard_copy, backend=backend, batch_size=39)
    expected = rf"{path}, sample {rows[20]['id']}: .* no image \(.*--repair SOURCE"
    with pytest.raises(ValueError, match=expected):
        list(loader)
    loader.close()


def test_no_image_is_blamed_for_what_has_another_cause(
    raw_shard_folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: NumpyBackend) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(NumpyBackend, "take", no_memory)
    with pytest.raises(RuntimeError, match="^out of memory$"):
        list(opened(raw_shard_folder))


@pytest.mark.parametrize("harm", ["shortened", "missing", "grown in front", "another shard's"])
def test_a_shard_changed_under_a_running_loader_names_itself_and_the_mend(
    shard_copy: Path, backend: str, harm: str, opened: Open
) -> None:
    loader = opened(shard_copy, backend=backend, batch_size=39)  # no shard is open yet
    path = shard_copy / "train-000002.tar"
    original = path.read_bytes()
    path.unlink()
    if harm == "shortened":
        path.write_bytes(original[:1000])
    elif harm == "grown in front":
        path.write_bytes(bytes(512) + original)
    elif harm == "another shard's":
        shutil.copy(shard_copy / "train-000001.tar", path)
    mend = "tools/prepare_shards.py" if harm == "missing" else "tools/verify_shards.py .* --repair"
    with pytest.raises(ValueError, match=rf"{path}.*{mend}"):
        list(loader)


def test_a_loader_that_failed_can_be_closed(shard_copy: Path, backend: str, opened: Open) -> None:
    loader = opened(shard_copy, backend=backend)
    for path in shard_copy.glob("train-*.tar"):
        flip_byte(path, path.stat().st_size // 2)
        flip_byte(path, path.stat().st_size // 4)
        flip_byte(path, 3 * path.stat().st_size // 4)
    with pytest.raises(ValueError, match="its bytes are not those written"):
        list(loader)
    closing = threading.Thread(target=loader.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()


@pytest.mark.parametrize("lighting", ["std", "off"])
@pytest.mark.parametrize("changes", [{}, {"resident": "host", "backend": "auto"}])
def test_lighting_handed_on_apart_gives_the_same_pixels(
    raw_shard_folder: Path,
    shard_folder: Path,
    backend: str,
    opened: Open,
    lighting: str,
    changes: dict[str, Any],
) -> None:
    """Bytes and their lighting; put together, bit for bit what a loader gives otherwise."""
    options = {"backend": backend, "lighting": lighting, **changes}
    for folder in (raw_shard_folder, shard_folder):
        whole = opened(folder, **options)
        halves = opened(folder, lighting_apart=True, **options)
        for given, apart in zip(whole, halves, strict=True):
            assert apart.images.dtype == torch.uint8 and given.lighting is None
            assert (apart.lighting is None) == (lighting == "off")
            lit = apart.lit()
            assert lit.images.dtype == torch.float32 and torch.equal(lit.images, given.images)
            assert lit.images.stride() == given.images.stride() and lit.lighting is None
            assert torch.equal(lit.ids, given.ids) and torch.equal(lit.crop, given.crop)
            assert given.lit() is given


def test_lighting_apart_is_refused_where_there_is_none_or_it_is_added(
    shard_folder: Path, opened: Open
) -> None:
    with pytest.raises(ValueError, match=r"lighting apart is of crops on the CPU, not of views"):
        opened(shard_folder, lighting_apart=True, views="full", training=False)
    with pytest.raises(ValueError, match=r"lighting apart is of crops on the CPU, .* on cuda:0"):
        opened(shard_folder, lighting_apart=True, device="cuda:0")
