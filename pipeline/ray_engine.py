"""Shard tasks on a Ray cluster: the same tasks and bytes, on as many machines as there are."""

import dataclasses
import socket
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import cv2

from pipeline.atomic import is_local
from pipeline.existing_shards import difference
from pipeline.plan import PlannedShard, ShardTask
from pipeline.shard_maker import Stages, make_shard
from pipeline.tally import Tally

MAX_RETRIES = 5  # of a shard whose worker or node died; an error of the task itself ends the run
QUEUED_PER_CORE = 2
POLL_SECONDS = 1.0
CONNECT_SECONDS = 10.0


def run_on_ray(
    shards: list[PlannedShard], address: str | None, report: Callable[[Tally], None]
) -> Stages:
    """Makes all shards on the Ray cluster at `address`; returns the seconds spent per stage.

    address: as ray.init takes it; None starts Ray on this machine alone. Every node needs this
    package, and must reach source and output under the same names; a local output is named to
    them by its absolute path, for they work in folders of their own. report: called with what the
    finished shards add up to. The death of a worker or a node costs only its unfinished
    shards. ValueError where Ray is missing or cannot be reached, or where a node's libraries
    would make other shards than this machine's; OSError from a task.
    """
    ray = _start_ray(address)
    try:
        return _run(ray, shards, report)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, (OSError, ValueError)) else error
    except ray.exceptions.RayError as error:
        raise OSError(
            f"the cluster lost a shard's task {MAX_RETRIES + 1} times ({error}); finished shards "
            "are kept: start again to go on"
        ) from error
    finally:
        ray.shutdown()


def _run(ray: Any, shards: list[PlannedShard], report: Callable[[Tally], None]) -> Stages:
    remote = ray.remote(max_retries=MAX_RETRIES, num_cpus=1)(_make_on_node)
    waiting = iter(shards)
    running: set[Any] = set()
    stages: Stages = Counter()
    done = Tally()
    while True:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))  # nodes come and go
        for shard in islice(waiting, max(0, QUEUED_PER_CORE * cores - len(running))):
            running.add(remote.remote(_task_of_nodes(shard), shard.settings.as_dict()))
        if not running:
            return stages
        ended, _ = ray.wait(list(running), timeout=POLL_SECONDS)
        for reference in ended:
            of_shard, added = ray.get(reference)
            stages.update(of_shard)
            done += added
            running.remove(reference)
        report(done)


def _task_of_nodes(shard: PlannedShard) -> ShardTask:
    out = shard.out.absolute() if is_local(shard.out) else shard.out
    return dataclasses.replace(shard, out=out).task()


def _make_on_node(task: ShardTask, settings: dict[str, Any]) -> tuple[Stages, Tally]:
    """Makes a shard on the node that runs this.

    settings: those of the driver. ValueError where they come out otherwise here, by other versions
    of the codecs or of this package: dataset.json would name the driver's over mixed shards.
    """
    here = task.settings.as_dict()
    if here != settings:
        raise ValueError(
            f"node {socket.gethostname()} would make other shards than this machine "
            f"({difference(here, settings)}): install the same versions there, then start again; "
            "finished shards are kept"
        )
    cv2.setNumThreads(1)
    parts: list[Tally] = []
    stages = make_shard(task, parts.append)
    return stages, sum(parts, Tally())


def require_ray(address: str | None) -> Any:
    """The package; ValueError where it is missing, or where nobody listens at the address."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs Ray: pip install 'fullfeed[ray]'") from error
    _check_address(address)
    return ray


def _start_ray(address: str | None) -> Any:
    ray = require_ray(address)
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"no Ray cluster at {address}: {error}") from error
    return ray


def _check_address(address: str | None) -> None:
    """ValueError where nobody listens at a host:port (Ray itself would try for many minutes)."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster at {address}: {error}") from error
