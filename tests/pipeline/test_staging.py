"""Staged shards give the batches that local ones give, and never take more than their bound."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.staging
from pipeline.calibrate import fastest
from pipeline.loader import Loader, LoaderConfig
from pipeline.locations import location
from pipeline.manifest import open_dataset
from pipeline.stage_folder import StageFolder
from pipeline.staging import Stage
from tests.conftest import compute_statistics, prepare_here
from tests.pipeline.conftest import (
    ROOT,
    Open,
    WebStore,
    kept,
    opener,
    sizes,
    staged_numbers,
    start_loader,
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens loaders (batch 4, one step ahead) and closes them after the test."""
    yield from opener(batch_size=4, prefetch=1, threads=1)


def held_bytes(stage: Path) -> int:
    """Bytes of the shards in a stage folder, and of those on their way."""
    total = 0
    for path in stage.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass  # evicted between the two
    return total


class Watched:
    """A stage folder, looked at whenever a file in it appears, grows or goes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most_bytes = folder, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watched":
        self.folder.mkdir()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.most_bytes = max(self.most_bytes, held_bytes(self.folder))


# ---- the same batches ----


@pytest.mark.parametrize("window", ["all", 1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_staged_batches_are_bit_equal_to_local_ones(
    web_store: WebStore, in_memory: Path, tmp_path: Path, window: Any, training: bool, opened: Open
) -> None:
    local = web_store.folder
    options: dict[str, Any] = {"window": window, "training": training}
    options["split"] = "train" if training else "val"
    loader = opened(local, **options)
    expected = [kept(batch) for _ in range(2) for batch in loader]
    for number, source in enumerate((location(web_store.url), in_memory, local)):
        loader = opened(source, **options, stage_dir=tmp_path / f"stage-{number}")
        assert [kept(batch) for _ in range(2) for batch in loader] == expected


def test_raw_shards_are_staged_as_well(
    raw_shard_folder: Path, tmp_path: Path, opened: Open
) -> None:
    expected = [kept(batch) for batch in opened(raw_shard_folder)]
    loader = opened(raw_shard_folder, stage_dir=tmp_path / "stage")
    assert [kept(batch) for batch in loader] == expected


def test_a_calibration_has_its_shards_staged_too(
    shard_folder: Path, tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.renderer.fastest", partial(fastest, max_seconds=0.0))
    expected = [kept(batch) for batch in opened(shard_folder)]
    loader = opened(shard_folder, stage_dir=tmp_path / "stage", calibrate=True, threads=2)
    assert [kept(batch) for batch in loader] == expected


@pytest.mark.parametrize("window", ["all", 1])
def test_resumed_at_every_step_the_batches_are_bit_equal(
    web_store: WebStore, tmp_path: Path, window: Any, opened: Open
) -> None:
    local = opened(web_store.folder, window=window)
    states, expected = [], []
    iterator = iter(local)
    for _ in range(len(local)):
        states.append(local.state_dict())
        expected.append(kept(next(iterator)))
    staged = opened(location(web_store.url), window=window, stage_dir=tmp_path / "stage")
    for step, state in reversed(list(enumerate(states))):
        staged.load_state_dict(state)
        assert [kept(batch) for batch in staged] == expected[step:]


def test_left_in_mid_epoch_the_next_loop_goes_on_where_it_was(
    web_store: WebStore, tmp_path: Path, opened: Open
) -> None:
    expected = [batch.ids.tolist() for batch in opened(web_store.folder, window=2)]
    loader = opened(location(web_store.url), window=2, stage_dir=tmp_path / "stage")
    found: list[list[int]] = []
    while len(found) < len(expected):
        found.append(next(iter(loader)).ids.tolist())
    assert found == expected


def test_a_resumed_epoch_brings_only_what_is_left_of_it(
    web_store: WebStore, tmp_path: Path, opened: Open
) -> None:
    state = opened(web_store.folder, window=1).state_dict()
    loader = opened(location(web_store.url), window=1, stage_dir=tmp_path / "stage")
    loader.load_state_dict({**state, "step": 8})
    ids = [i for batch in loader for i in batch.ids.tolist()]
    index = open_dataset(web_store.folder).index("train")
    needed = {int(row["shard"]) for row in index if row["id"] in ids}
    assert needed < set(range(5))
    asked = {name for name in web_store.num_requests if name.endswith(".tar")}
    # The dropped last partial batch may lie in a shard of its own, which nothing asks for.
    assert asked == {f"train-{number:06d}.tar" for number in needed}


# ---- who shares a folder ----


def test_what_fits_is_brought_once_for_all_epochs_ranks_and_loaders(
    web_store: WebStore, tmp_path: Path, opened: Open
) -> None:
    options: dict[str, Any] = {"stage_dir": tmp_path / "stage"}
    url = location(web_store.url)
    ranks = [opened(url, **options, rank=rank, world_size=2) for rank in range(2)]
    validation = opened(url, **options, split="val", training=False)
    for _ in range(2):
        for _ in zip(*ranks, strict=True):
            pass
        list(validation)
    tars = {n: count for n, count in web_store.num_requests.items() if n.endswith(".tar")}
    assert tars == dict.fromkeys([f"train-{i:06d}.tar" for i in range(5)] + [
        f"val-{i:06d}.tar" for i in range(len(sizes(web_store.folder, "val")))
    ], 1)  # fmt: skip


def test_processes_share_one_download_each(
    web_store: WebStore, tmp_path: Path, shard_folder: Path, opened: Open
) -> None:
    for number in range(5):
        web_store.faults[f"train-{number:06d}.tar"] = ["stall"]
    process = start_loader(web_store.url, tmp_path / "stage")
    assert web_store.stalled.wait(120)
    here = opened(location(web_store.url), stage_dir=tmp_path / "stage")
    threading.Timer(0.5, web_store.go_on.set).start()  # till then this one waits for the other
    expected = [batch.ids.tolist() for batch in opened(shard_folder)]
    assert [batch.ids.tolist() for batch in here] == expected
    assert process.communicate(timeout=120)[0] == f"{expected}\n".encode()
    tars = [count for name, count in web_store.num_requests.items() if name.endswith(".tar")]
    assert tars == [1] * 5


def test_a_process_killed_in_mid_download_leaves_no_harm(
    web_store: WebStore, tmp_path: Path, opened: Open
) -> None:
    stage = tmp_path / "stage"
    for number in range(5):
        web_store.faults[f"train-{number:06d}.tar"] = ["stall"]
    process = start_loader(web_store.url, stage)
    assert web_store.stalled.wait(120)
    while not list(stage.glob("*.part")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(stage.glob("*.part"))
    total = sum(sizes(web_store.folder))
    web_store.faults.clear()
    loader = opened(location(web_store.url), stage_dir=stage, stage_bytes=total)
    expected = [kept(batch) for batch in opened(web_store.folder)]
    assert [kept(batch) for batch in loader] == expected
    assert list(stage.glob("*.part")) == []


# ---- the bound ----


@pytest.mark.parametrize("window", [1, 2])
def test_epochs_after_epochs_never_hold_more_than_the_bound(
    in_memory: Path, shard_folder: Path, tmp_path: Path, window: int, opened: Open
) -> None:
    bound = sum(sorted(sizes(shard_folder))[-2 * window :])
    options: dict[str, Any] = {"window": window, "batch_size": 1}
    local = opened(shard_folder, **options)
    with Watched(tmp_path / "stage") as watched:
        staging = {"stage_dir": watched.folder, "stage_bytes": bound}
        staged = opened(in_memory, **options, **staging)
        validation = opened(in_memory, split="val", training=False, **staging)
        for _ in range(3):
            expected = [batch.ids.tolist() for batch in local]
            assert [batch.ids.tolist() for batch in staged] == expected
            assert sum(len(batch.ids) for batch in validation) == 15
    assert 0.5 * bound < watched.most_bytes <= bound < sum(sizes(shard_folder))


def test_ranks_of_different_speed_stay_within_the_bound(
    in_memory: Path, shard_folder: Path, tmp_path: Path, opened: Open
) -> None:
    bound = sum(sorted(sizes(shard_folder))[-2:])
    options: dict[str, Any] = {"window": 1, "batch_size": 2}
    expected = [kept(batch) for _ in range(2) for batch in opened(shard_folder, batch_size=2,
                                                                  window=1)]  # fmt: skip
    with Watched(tmp_path / "stage") as watched:
        staging = {"stage_dir": watched.folder, "stage_bytes": bound}
        ranks = [
            opened(in_memory, **options, **staging, rank=rank, world_size=2) for rank in range(2)
        ]
        seen: list[list[Any]] = [[], []]
        slow = threading.Thread(target=lambda: seen[1].extend(slowly(ranks[1])))
        slow.start()
        seen[0].extend(kept(batch) for batch in ranks[0])
        slow.join()
    del expected[len(seen[0]) :]
    together = [
        tuple(x + y for x, y in zip(a, b, strict=True)) for a, b in zip(*seen, strict=True)
    ]
    assert together == expected
    assert watched.most_bytes <= bound


def slowly(loader: Loader) -> Iterator[Any]:
    for batch in loader:
        time.sleep(0.05)
        yield kept(batch)


def test_all_shards_must_fit_without_a_window(
    in_memory: Path, shard_folder: Path, tmp_path: Path, opened: Open
) -> None:
    total = sum(sizes(shard_folder))
    staging = {"stage_dir": tmp_path / "stage"}
    assert len(opened(in_memory, **staging, stage_bytes=total)) > 0
    with pytest.raises(ValueError, match="--window all reads from all 5 shards of memory:.*"
                       "larger --stage-bytes, or --window W"):  # fmt: skip
        opened(in_memory, **staging, stage_bytes=total - 1)


def test_two_windows_must_fit(
    in_memory: Path, shard_folder: Path, tmp_path: Path, opened: Open
) -> None:
    needed = sum(sorted(sizes(shard_folder))[-4:])
    staging = {"stage_dir": tmp_path / "stage", "window": 2}
    assert len(opened(in_memory, **staging, stage_bytes=needed)) > 0
    with pytest.raises(ValueError, match="4 shards are read where one window of 2 follows .*"
                       "larger --stage-bytes, or a smaller --window"):  # fmt: skip
        opened(in_memory, **staging, stage_bytes=needed - 1)


def test_reading_ahead_over_more_than_two_windows_must_fit_too(
    in_memory: Path, shard_folder: Path, tmp_path: Path, opened: Open
) -> None:
    bound = sum(sorted(sizes(shard_folder))[-2:])
    staging = {"stage_dir": tmp_path / "stage", "stage_bytes": bound, "window": 1}
    loader = opened(in_memory, **staging, batch_size=13)
    with pytest.raises(ValueError, match="batches of 13, 3 of them read ahead, need shards of .*"
                       "give a larger one"):  # fmt: skip
        next(iter(loader))


def test_a_url_needs_a_stage_and_a_bound_needs_one_too(in_memory: Path) -> None:
    with pytest.raises(ValueError, match="memory://staged/shards is not on this machine: .*"
                       "--stage-dir DIR.*--stage-bytes 200GB"):  # fmt: skip
        LoaderConfig(shards=in_memory, batch_size=4)
    with pytest.raises(ValueError, match="--stage-bytes .* needs --stage-dir DIR"):
        LoaderConfig(shards=Path("shards"), batch_size=4, stage_bytes=10**9)
    with pytest.raises(ValueError, match="stage bytes must be at least 1, not 0"):
        LoaderConfig(shards=in_memory, batch_size=4, stage_dir=Path("stage"), stage_bytes=0)


def test_the_next_shards_come_before_anybody_asks_for_them(
    in_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each shard's last step is delivered it makes way for the next in the epoch's order."""
    monkeypatch.setattr(pipeline.staging, "IDLE_POLL_SECONDS", 600.0)
    shards = open_dataset(in_memory).split("train").shards
    bound = sum(sorted(shard.bytes for shard in shards)[-2:])
    folder = StageFolder(tmp_path / "stage", bound)
    stage = Stage(in_memory, shards, folder, window=1, steps_ahead=1)
    in_order = [3, 0, 4, 1, 2]
    stage.begin(np.repeat(in_order, 8), batch_size=2, step=0)  # four steps of each
    for step in range(20):
        first = step // 4
        soon = time.monotonic() + 30
        while staged_numbers(tmp_path / "stage") != set(in_order[first : first + 2]) | (
            {in_order[3]} if first == 4 else set()  # nothing takes the last one's place
        ):
            assert time.monotonic() < soon
            time.sleep(0.005)
        stage.passed(step + 1)
    stage.close()


HOLD_ALL = """
import resource, sys
from pathlib import Path

import numpy as np

from pipeline.manifest import Shard
from pipeline.stage_folder import StageFolder
from pipeline.staging import Stage

source, target, soft, hard, num_shards, window = Path(sys.argv[1]), *sys.argv[2:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of "x"
shards = [Shard(name=f"{i}.tar", samples=1, bytes=1, sha256=sha256)
          for i in range(int(num_shards))]
try:
    stage = Stage(source, shards, StageFolder(Path(target)), steps_ahead=1,
                  window="all" if window == "all" else int(window))
except ValueError as error:
    sys.exit(f"refused: {error}")
stage.begin(np.arange(len(shards)), batch_size=len(shards), step=0)
held = [stage.get(number) for number in range(len(shards))]
print(len({shard.descriptor for shard in held}), *resource.getrlimit(resource.RLIMIT_NOFILE))
stage.close()
"""


@pytest.fixture
def many_shards(tmp_path: Path) -> Path:
    """150 of one byte each."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(150):
        (folder / f"{number}.tar").write_text("x")
    return folder


def holding_all(
    source: Path, soft: int, hard: int, window: str = "all"
) -> "subprocess.CompletedProcess[str]":
    """A process of these limits that opens a stage of 150 shards, and holds all at once."""
    limits = [str(number) for number in (soft, hard, 150)]
    command = [sys.executable, "-c", HOLD_ALL, str(source), str(source.parent / "stage")]
    return subprocess.run(
        [*command, *limits, window],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_more_shards_than_a_process_may_open_at_first_are_held(many_shards: Path) -> None:
    done = holding_all(many_shards, soft=100, hard=240)
    assert (done.stdout, done.stderr) == ("150 240 240\n", "")
    done = holding_all(many_shards, soft=100, hard=4000)
    assert done.stdout == "150 250 4000\n"  # what it may open besides is what it was


def test_more_shards_than_a_process_may_ever_open_are_refused(many_shards: Path) -> None:
    done = holding_all(many_shards, soft=100, hard=200)
    assert re.search(r"refused: .*source: up to 150 shards are held open .* 200 files .*ulimit -n "
                     r"214.*or give --window W", done.stderr)  # fmt: skip
    done = holding_all(many_shards, soft=100, hard=200, window="50")
    assert "a smaller --window" in done.stderr
    # The refusal counts what a window holds: 2 x 20 and 20 ahead are few enough.
    assert holding_all(many_shards, soft=100, hard=200, window="20").stdout == "150 160 200\n"


# ---- an object store ----


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of boto3
def test_s3_delivers_what_a_folder_delivers(
    image_folder: Path, shard_folder: Path, tmp_path: Path, s3_server: dict[str, str],
    opened: Open,
) -> None:  # fmt: skip
    there = location("s3://bucket/some/shards")
    prepare_here(image_folder, there)
    compute_statistics(there)
    expected = [kept(batch) for batch in opened(shard_folder, window=2)]
    loader = opened(there, window=2, stage_dir=tmp_path / "stage")
    assert [kept(batch) for batch in loader] == expected
