"""Whole runs of two processes that are killed, at any moment, and lose nothing by it."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.trainer.test_rank import (
    NUM_STEPS,
    PATIENCE_SECONDS,
    RUN,
    assert_bit_equal,
    finish,
    last,
    ranks_of,
    start,
    undisturbed,
)
from trainer import run

OFTEN = ("--save-every-minutes", "0.0001")


def saved_step(folder: Path) -> int:
    path = folder / "last.safetensors"
    return int(last(folder).progress["step"]) if path.exists() else 0


def wait_until(true: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < PATIENCE_SECONDS
        time.sleep(0.01)


def kill(process: "subprocess.Popen[str]", victim: str) -> None:
    """kill -9 of a rank, of both, or of the launcher, whose ranks then end by themselves."""
    if victim == "launcher":
        process.kill()
        return
    for rank, one in enumerate(ranks_of(process)):
        if victim in (str(rank), "both"):
            try:
                one.kill()
            except psutil.NoSuchProcess:  # between two starts
                pass


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "num_kills"), [("data", 10), ("columns", 5), ("hybrid", 5)])
def test_kills_at_random_moments_change_no_bit(
    mode: str, num_kills: int, shard_folder: Path, tmp_path: Path
) -> None:
    """While it starts, trains, validates, saves: the end is that of the undisturbed run."""
    options, cut = (*RUN, "--parallel", mode), tmp_path / "cut"
    rng = random.Random(f"kills {mode}")
    moments = sorted(rng.randrange(NUM_STEPS - 1) for _ in range(num_kills))
    process = start(shard_folder, cut, *options, *OFTEN, "--max-restarts", str(num_kills))
    for step in moments:
        wait_until(lambda: saved_step(cut) >= step and len(ranks_of(process)) == 2)
        time.sleep(rng.uniform(0, 0.3))  # any moment of what follows
        victim = rng.choice(["0", "1", "both", "launcher"])
        kill(process, victim)
        if victim == "launcher":
            finish(process)
            process = start(
                shard_folder, cut, *options, *OFTEN, "--max-restarts", str(num_kills)
            )
    code, _, err = finish(process)
    assert code == 0, err
    assert_bit_equal(undisturbed(shard_folder, mode), cut)
    assert not list(cut.glob("*.tmp"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(port: int, shards: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    """One of two machines, by torch's own launcher: a rank, and an agent that knows the other."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run",
        "--local-addr", "127.0.0.1", "--max-restarts", "3", run.__file__, "--shards", str(shards),
        "--out", str(out), "--device", "cpu", "--backend", "numpy", "--width", "0.03125",
        "--batch-size", "4", *options,
    ]  # fmt: skip
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {
        **os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_two_agents_act_as_two_machines_and_a_killed_rank_is_started_again_on_both(
    shard_folder: Path, tmp_path: Path
) -> None:
    port, out = free_port(), tmp_path / "run"
    agents = [torchrun(port, shard_folder, out, *RUN, *OFTEN) for _ in range(2)]
    wait_until(lambda: saved_step(out) >= 5)
    killed = psutil.Process(agents[1].pid).children()[0]
    killed.kill()
    ends = [finish(agent) for agent in agents]
    assert [code for code, _, _ in ends] == [0, 0], ends
    told = "".join(out for _, out, _ in ends)
    assert "2 processes, hybrid: " in told and "by a network" in told and "resuming" in told
    assert_bit_equal(undisturbed(shard_folder, "hybrid"), out)


@pytest.mark.slow
def test_two_agents_stop_together_and_the_run_goes_on_on_one_machine(
    shard_folder: Path, tmp_path: Path
) -> None:
    """A scheduler signals the ranks of one machine alone, as Slurm's --signal does."""
    port, out = free_port(), tmp_path / "run"
    options = (*RUN, *OFTEN, "--parallel", "data")
    agents = [torchrun(port, shard_folder, out, *options) for _ in range(2)]
    wait_until(lambda: saved_step(out) >= 5)
    psutil.Process(agents[1].pid).children()[0].send_signal(signal.SIGUSR1)
    ends = [finish(agent) for agent in agents]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert 5 < last(out).progress["step"] < NUM_STEPS
    assert finish(start(shard_folder, out, *RUN, "--parallel", "data"))[0] == 0
    assert_bit_equal(undisturbed(shard_folder, "data"), out)


@pytest.mark.slow
def test_ranks_do_not_outlive_a_foreign_launcher_that_a_signal_ends(
    shard_folder: Path, tmp_path: Path
) -> None:
    """torchrun knows no SIGUSR1: it dies of it, and its ranks save and end by themselves."""
    port, out = free_port(), tmp_path / "run"
    agents = [torchrun(port, shard_folder, out, *RUN, *OFTEN) for _ in range(2)]
    wait_until(lambda: saved_step(out) >= 3)
    ranks = [psutil.Process(agent.pid).children()[0] for agent in agents]
    for agent in agents:
        agent.send_signal(signal.SIGUSR1)
        finish(agent)
    gone, alive = psutil.wait_procs(ranks, PATIENCE_SECONDS)
    assert not alive and 3 < last(out).progress["step"] < NUM_STEPS
