"""Which image goes to which shard depends on the listing and the settings, on nothing else."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.manifest import open_dataset
from pipeline.originals import Listing, Source
from pipeline.plan import PlannedShard, Settings, ShardTask, plan
from tests.pipeline.conftest import listing_of
from tools.measure.memory import peak_bytes

# Of 12 samples with shuffle seed 7, at most 5 to a shard. NumPy may change its streams one day;
# shards of equal settings would then no longer be equal, and PLAN_VERSION must be raised.
GOLDEN = {
    "train": [(3, 10, 4, 9), (1, 5, 0, 7), (11, 8, 6, 2)],
    "val": [(2, 9, 3, 1), (11, 8, 5, 4), (10, 6, 0, 7)],
}


def made_up(num_train: int, num_val: int = 0) -> Source:
    def listing(split: str, count: int) -> Listing:
        names = [f"{split}/a/{i:06d}.jpg".encode() for i in range(count)]
        return listing_of(names, [i % 3 for i in range(count)])

    return Source(
        root=Path("nowhere"),
        format="folders",
        classes=("a", "b", "c"),
        splits={"train": listing("train", num_train), "val": listing("val", num_val)},
    )


def planned(source: Source, **settings: Any) -> list[ShardTask]:
    return [shard.task() for shard in shards_of(source, **settings)]


def shards_of(source: Source, **settings: Any) -> list[PlannedShard]:
    return list(plan(source, Path("out"), Settings(**settings)))


def test_the_permutation_is_the_one_of_version_one() -> None:
    tasks = planned(made_up(12, 12), images_per_shard=5, shuffle_seed=7)
    found = {
        split: [tuple(task.ids.tolist()) for task in tasks if task.split == split]
        for split in ("train", "val")
    }
    assert found == GOLDEN


@pytest.mark.parametrize("num_found", [1, 2, 9, 10, 11, 100])
@pytest.mark.parametrize("images_per_shard", [1, 3, 10, 1000])
def test_every_sample_goes_to_exactly_one_shard_of_equal_size(
    num_found: int, images_per_shard: int
) -> None:
    tasks = planned(made_up(num_found), images_per_shard=images_per_shard)
    sizes = [len(task.ids) for task in tasks]
    assert sorted(i for task in tasks for i in task.ids) == list(range(num_found))
    assert max(sizes) <= images_per_shard and max(sizes) - min(sizes) <= 1
    assert len(tasks) == -(-num_found // images_per_shard)
    assert [task.number for task in tasks] == list(range(len(tasks)))


def test_names_and_labels_follow_their_ids() -> None:
    source = made_up(50)
    listing = source.splits["train"]
    for task in planned(source, images_per_shard=7):
        assert list(task.originals.names) == [listing.names[i] for i in task.ids]
        assert task.originals.labels.tolist() == [listing.labels[i] for i in task.ids]
        assert task.stem == f"train-{task.number:06d}"


def test_the_seed_and_the_split_decide_the_permutation() -> None:
    seeds = (0, 1, 2**64 - 2, 2**64 - 1)
    source = made_up(40, 40)
    found = [
        (shard.split, tuple(shard.ids.tolist()))
        for seed in seeds
        for shard in shards_of(source, shuffle_seed=seed)
    ]
    again = shards_of(made_up(40, 40), shuffle_seed=0)
    assert found[:2] == [(shard.split, tuple(shard.ids.tolist())) for shard in again]
    assert len({ids for _, ids in found}) == 8


def test_a_split_without_files_has_no_shards() -> None:
    assert {task.split for task in planned(made_up(5, 0))} == {"train"}


def task_of(names: tuple[bytes, ...], ids: tuple[int, ...], labels: tuple[int, ...]) -> ShardTask:
    (task,) = planned(made_up(2))
    originals = listing_of(names, labels)
    return replace(task, ids=np.array(ids, np.int64), originals=originals)


def test_the_plan_hash_changes_with_names_ids_and_labels() -> None:
    tasks = [
        task_of((b"a", b"b"), (0, 1), (0, 0)),
        task_of((b"a", b"c"), (0, 1), (0, 0)),
        task_of((b"a", b"b"), (1, 0), (0, 0)),
        task_of((b"a", b"b"), (0, 1), (0, 1)),
        task_of((b"a1 0 1 b",), (0,), (0,)),  # a name that looks like two
    ]
    assert len({task.plan_hash for task in tasks}) == len(tasks)
    assert tasks[0].plan_hash == task_of((b"a", b"b"), (0, 1), (0, 0)).plan_hash


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_shard": 0}, "images per shard must be at least 1, not 0"),
        ({"shuffle_seed": -1}, r"shuffle seed must be within 0..2\*\*64-1, not -1"),
        ({"shuffle_seed": 2**64}, "shuffle seed must be within"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)  # type: ignore[arg-type]  # wrong on purpose


PLAN_15_MILLION = """
import time
from pathlib import Path
from pipeline.plan import Settings, plan
from tools.measure.memory import peak_bytes  # getrusage's is at least that of whoever started it
from tools.measure.simulated import NUM_CLASSES, simulate_source

start = time.process_time()
source = simulate_source(NUM_CLASSES * 687)
listed = time.process_time()
shards = list(plan(source, Path("out"), Settings()))
planned = time.process_time()
for shard in shards:
    assert shard.task().plan_hash
done = time.process_time()
seconds = listed - start, planned - listed, done - planned
print(len(source.splits["train"].names), len(shards), peak_bytes(), *seconds)
"""


@pytest.mark.slow
@pytest.mark.skipif(peak_bytes() is None, reason="needs Linux's account of a process's memory")
def test_planning_15_million_images_takes_under_2_gb_and_a_minute_of_one_core() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAN_15_MILLION], capture_output=True, text=True, check=True
    )
    numbers = [float(number) for number in done.stdout.split()]
    num_images, num_shards, peak_bytes, listing, planning, hashing = numbers
    print(
        f"{num_images:,.0f} images, {num_shards:,.0f} shards: {peak_bytes / 1e6:,.0f} MB; "
        f"listing {listing:.1f} s, plan {planning:.1f} s, all tasks and hashes {hashing:.1f} s"
    )
    assert num_images > 15e6 and num_shards == -(-num_images // 1000)
    assert peak_bytes < 2e9
    assert listing + planning + hashing < 60


def test_settings_are_read_back_as_they_were_written(
    shard_folder: Path, raw_shard_folder: Path
) -> None:
    for folder in (shard_folder, raw_shard_folder):
        written = open_dataset(folder).settings
        assert Settings.from_dict(written).as_dict() == written
