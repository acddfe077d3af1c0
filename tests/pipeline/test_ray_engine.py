"""The same shards on a Ray cluster, also where a node of it dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.locations import location
from pipeline.plan import PlannedShard, Settings, ShardTask, plan
from pipeline.ray_engine import _run
from pipeline.sources import open_source
from tests.conftest import folder_bytes, prepare_here, write_source
from tests.pipeline.conftest import small_source

ENTRY_FILE = Path(__file__).parents[2] / "tools/prepare_shards.py"
ON_TWO_NODES = '''
import sys, threading
from pathlib import Path
from ray.cluster_utils import Cluster
from pipeline.plan import Settings
from pipeline.prepare import prepare
from pipeline.ray_engine import run_on_ray
from pipeline.sources import open_source

source, out, kill = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "kill"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
killed = threading.Event()
before = {}

def receipts():
    return {path: path.stat().st_mtime_ns for path in out.glob("*.receipt.json")}

def report(done):
    found = receipts()
    if kill and done.images and len(found) >= 3 and not killed.is_set():
        killed.set()
        before.update(found)
        cluster.remove_node(second, allow_graceful=False)

prepare(
    open_source(source),
    out,
    Settings(images_per_shard=4),
    lambda shards: run_on_ray(shards, cluster.address, report),
)
after = receipts()
again = [path.name for path, time_ns in before.items() if after[path] != time_ns]
assert len(again) <= 1, again  # one core died: its task may have ended and not yet said so
print("killed" if killed.is_set() else "whole")
cluster.shutdown()
'''


def on_two_nodes(source: Path, out: Path, what: str) -> str:
    """Prepares on a cluster of two nodes on this machine; returns the last line printed.

    kill: one node dies once shards are finished, which are not made again.
    """
    command = [sys.executable, "-c", ON_TWO_NODES, str(source), str(out), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["spare", "kill"])
def test_two_nodes_make_the_same_bytes_also_when_one_is_killed(tmp_path: Path, what: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (fullfeed[ray])")
    source = write_source(tmp_path / "originals", train_per_class=40)
    prepare_here(source, tmp_path / "here", images_per_shard=4)
    last_line = on_two_nodes(source, tmp_path / "there", what)
    assert last_line == {"spare": "whole", "kill": "killed"}[what]
    assert folder_bytes(tmp_path / "there") == folder_bytes(tmp_path / "here")


@pytest.mark.slow
def test_the_command_makes_the_same_bytes_on_ray_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (fullfeed[ray])")
    source, out = write_source(tmp_path / "originals", train_per_class=40), tmp_path / "there"
    prepare_here(source, tmp_path / "here", images_per_shard=4)
    command = [sys.executable, str(ENTRY_FILE), str(source), "--out", str(out)]
    command += ["--images-per-shard", "4", "--engine", "ray"]
    environment = {**os.environ, "RAY_ADDRESS": ""}  # one of this machine alone
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **quiet) as process:
        while process.poll() is None and len(list(out.glob("*.receipt.json"))) < 3:
            time.sleep(0.005)
        process.kill()  # its cluster ends by itself
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    num_kept = int(done.stdout.rpartition(" shards made, ")[2].split()[0])
    assert num_kept >= 3
    assert folder_bytes(out) == folder_bytes(tmp_path / "here")


class OneNode:
    """As much of Ray as the engine asks for: each task runs, when it is given, on one node.

    versions: of the node's libraries, where they are not this machine's.
    """

    def __init__(self, versions: dict[str, str] | None = None) -> None:
        self.versions = versions or {}
        self.tasks: list[ShardTask] = []
        self.results: list[Any] = []

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, **_: int) -> Callable[..., Any]:
        return lambda function: self.Remote(self, function)

    class Remote:
        """A function that runs there."""

        def __init__(self, node: "OneNode", function: Callable[..., Any]) -> None:
            self.node, self.function = node, function

        def remote(self, task: ShardTask, *others: Any) -> int:
            """Runs it; returns its result's reference."""
            self.node.tasks.append(task)
            there = {**Settings().as_dict()["versions"], **self.node.versions}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("pipeline.images._codec_versions", lambda: there)
                self.node.results.append(self.function(task, *others))
            return len(self.node.results) - 1

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return references, []

    def get(self, reference: int) -> Any:
        return self.results[reference]


def planned(source: Path, out: Path) -> list[PlannedShard]:
    return list(plan(open_source(source), out, Settings(images_per_shard=5)))


def test_a_node_of_other_codecs_is_refused_by_name_and_makes_no_shard(tmp_path: Path) -> None:
    shards = planned(small_source(tmp_path / "source"), tmp_path / "out")
    (tmp_path / "out").mkdir()
    message = rf"node {socket.gethostname()} would make other shards than this machine "
    message += r"\(opencv is 4\.0\.0 there, .* here\): install the same versions there"
    with pytest.raises(ValueError, match=message):
        _run(OneNode({"opencv": "4.0.0"}), shards, lambda _: None)
    assert list((tmp_path / "out").iterdir()) == []
    _run(OneNode(), shards, lambda _: None)
    assert len(list((tmp_path / "out").glob("*.receipt.json"))) == len(shards)


def test_nodes_are_given_a_relative_output_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    node = OneNode()
    shards = planned(small_source(tmp_path / "source"), Path("out"))
    _run(node, shards, lambda _: None)
    assert {task.out for task in node.tasks} == {tmp_path / "out"}


def test_nodes_are_given_an_object_store_by_its_url(tmp_path: Path) -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[s3])")
    node, out = OneNode(), location("memory://of-ray/shards")
    _run(node, planned(small_source(tmp_path / "source"), out), lambda _: None)
    assert {str(task.out) for task in node.tasks} == {str(out)}
    getattr(out, "fs").rm("/of-ray", recursive=True)


def test_without_ray_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.ray_engine import run_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'fullfeed\[ray\]'"):
        run_on_ray([], None, lambda _: None)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (fullfeed[ray])")
    source = write_source(tmp_path / "originals", train_per_class=1, val_per_class=1)
    command = [sys.executable, str(ENTRY_FILE)]
    out = tmp_path / "out"
    done = subprocess.run(
        [*command, str(source), "--out", str(out), "--engine", "ray"]
        + ["--ray-address", "127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "error: no Ray cluster at 127.0.0.1:1" in done.stderr
