"""The same shards on a Ray cluster, also where a node of it dies."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import folder_bytes, prepare_here, write_source

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
    command = [sys.executable, str(Path(__file__).parents[2] / "tools/prepare_shards.py")]
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
