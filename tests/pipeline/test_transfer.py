"""Transfers that break are tried again, and given up with what happened."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

import pipeline.transfer
from pipeline.locations import location
from pipeline.transfer import NUM_TRIES, Stopped, fetch, read_file
from tests.pipeline.conftest import FAULTS, ROOT, WebStore

NAME = "train-000001.tar"
pytestmark = pytest.mark.usefixtures("hasty")


class Goal:
    """A file to be fetched: where to, and whether it is what it should be."""

    def __init__(self, folder: Path, tmp_path: Path) -> None:
        self.data = (folder / NAME).read_bytes()
        self.path = tmp_path / "fetched"

    def check(self) -> None:
        data = self.path.read_bytes()
        if len(data) != len(self.data):
            raise OSError(f"it ended after {len(data)} bytes")
        if data != self.data:
            raise OSError(f"its SHA-256 is {hashlib.sha256(data).hexdigest()}")

    def fetch(self, source: Path, stopped: threading.Event | None = None) -> None:
        fetch(source, self.path, self.check, max_bytes=len(self.data), stopped=stopped)


@pytest.fixture
def goal(shard_folder: Path, tmp_path: Path) -> Goal:
    return Goal(shard_folder, tmp_path)


def test_files_come_from_folders_stores_and_web_servers(
    shard_folder: Path, in_memory: Path, web_store: WebStore, goal: Goal
) -> None:
    for source in (shard_folder, in_memory, location(web_store.url)):
        goal.path.unlink(missing_ok=True)
        goal.fetch(source / NAME)
        assert goal.path.read_bytes() == goal.data == read_file(source / NAME)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_transfer_is_tried_again(web_store: WebStore, fault: str, goal: Goal) -> None:
    web_store.faults[NAME] = [fault] * (NUM_TRIES - 1)
    goal.fetch(location(web_store.url) / NAME)
    assert goal.path.read_bytes() == goal.data
    assert web_store.num_requests[NAME] == NUM_TRIES


@pytest.mark.parametrize("fault", FAULTS)
def test_one_that_stays_broken_is_given_up_with_what_happened(
    web_store: WebStore, fault: str, goal: Goal
) -> None:
    web_store.faults[NAME] = [fault] * 2 * NUM_TRIES
    url = f"{web_store.url}/{NAME}"
    with pytest.raises(OSError, match=f"({FAULTS[fault]}).*; tried 5 times: '{url}'"):
        goal.fetch(location(web_store.url) / NAME)
    assert web_store.num_requests[NAME] == NUM_TRIES


def test_a_server_that_is_not_there_is_given_up_too(web_store: WebStore, goal: Goal) -> None:
    url = location(web_store.url)
    web_store.close()
    with pytest.raises(OSError, match="Connect call failed .*; tried 5 times"):
        goal.fetch(url / NAME)


def test_what_is_not_there_is_not_asked_for_again(
    shard_folder: Path, in_memory: Path, web_store: WebStore, goal: Goal
) -> None:
    for source in (shard_folder, in_memory, location(web_store.url)):
        with pytest.raises(FileNotFoundError) as error:
            goal.fetch(source / "none.tar")
        assert error.value.filename == str(source / "none.tar")
    assert web_store.num_requests["none.tar"] == 1


def test_pauses_grow(web_store: WebStore, goal: Goal) -> None:
    class Recorder(threading.Event):
        pauses: list[float | None] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.pauses.append(timeout)
            return False

    web_store.faults[NAME] = ["refuse"] * (NUM_TRIES - 1)
    goal.fetch(location(web_store.url) / NAME, Recorder())
    assert Recorder.pauses == [0.01, 0.02, 0.04, 0.08]


def test_a_transfer_that_nobody_waits_for_any_more_ends_soon(
    web_store: WebStore, goal: Goal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.transfer, "STALL_SECONDS", 60.0)
    web_store.faults[NAME] = ["stall"]
    stopped = threading.Event()
    threading.Timer(0.3, stopped.set).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        goal.fetch(location(web_store.url) / NAME, stopped)
    assert 0.2 < time.monotonic() - started < 10


def test_a_full_disk_is_not_tried_again(web_store: WebStore) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        fetch(location(web_store.url) / NAME, Path("/dev/full"), lambda: None)
    assert web_store.num_requests[NAME] == 1


@pytest.mark.parametrize(
    ("protocol", "is_watched"),
    [("https", True), ("s3", True), ("gs", True), ("az", True), ("hdfs", False), ("file", False)],
)
def test_stalls_are_watched_where_the_documentation_says(protocol: str, is_watched: bool) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (fullfeed[https])")
    try:
        store = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        pytest.skip(f"{protocol}: {error}")
    assert store.async_impl is is_watched
    told = (ROOT / "docs/preparing.md").read_text()
    assert (f"`{protocol}`" in told.split("asynchronous", 1)[1].split(")", 1)[0]) is is_watched
