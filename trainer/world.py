"""A process's place among the ranks of a run, the group they join, and which of them is lost."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import IntEnum

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from trainer.collectives import Group
from trainer.config import find_device
from trainer.launch import is_rank

TIMEOUT_SECONDS = 600.0
ROLL_CALL_SECONDS = 3.0  # in which ranks that wait for one that hangs say so
AGREE_STEPS = 8  # on a GPU, whose steps take about a millisecond
TIMED_OUT = ("Timed out", "timed out", "Application timeout")  # in what gloo and the store say
GONE = ("Connection closed by peer", "Connection reset", "Broken pipe", "Connection refused")


@dataclass(frozen=True, kw_only=True)
class World:
    """One rank of `size`, on `device`; `local_size` of them share this machine.

    timeout_seconds: after which a rank that does not answer is taken for lost.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_size: int = 1
    timeout_seconds: float = TIMEOUT_SECONDS
    store: Store | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank prints and writes for all."""
        return self.rank == 0

    @property
    def ranks(self) -> Group:
        """All of them, for an exchange before the network is shared out."""
        return Group(dist.group.WORLD if self.size > 1 else None)

    @property
    def one_machine(self) -> bool:
        """Whether all ranks share this one."""
        return self.size == self.local_size


@contextmanager
def joined(device: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[World]:
    """Joins the ranks that a launcher started, for as long as the block runs; else a world of one.

    device: as --device has it; each rank takes the GPU of its number on this machine. Exchange is
    by NCCL between GPUs, by gloo between CPUs and between ranks that share a GPU.
    """
    world = World(device=find_device(device), timeout_seconds=timeout_seconds)
    if not is_rank() or os.environ.get("WORLD_SIZE") == "1":
        yield world
        return
    local_size, backend = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "gloo"
    if world.device.type == "cuda":
        num_gpus = torch.cuda.device_count()
        gpu = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % num_gpus)
        torch.cuda.set_device(gpu)
        world = replace(world, device=gpu)
        if local_size <= num_gpus:
            backend = "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=timeout_seconds)
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    dist.init_process_group(
        backend,
        store=PrefixStore("groups", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    yield replace(
        world,
        rank=rank,
        size=size,
        local_size=local_size,
        store=PrefixStore("fullfeed", store),
    )
    dist.destroy_process_group()  # not after an error: it could wait for a rank that is lost


class Wish(IntEnum):
    """What a rank wants between two steps; of several wishes the greatest is granted."""

    NOTHING = 0
    SAVE = 1  # a checkpoint, and on
    STOP = 2  # with a checkpoint


class Agreement:
    """A wish of any rank, granted to all of them in the same step; no step waits for it.

    Each step calls it with this rank's wish, again until it is granted. Every so many steps the
    wishes are sent off, and the answer is read as many steps later. Where there is one rank a
    wish is granted at once.
    """

    def __init__(self, world: World) -> None:
        self._alone = world.size == 1
        self._every_steps = AGREE_STEPS if world.device.type == "cuda" else 1
        self._num_calls = 0
        self._wish = torch.zeros(1, dtype=torch.int32)  # on the CPU: gloo, whatever the device
        self._sent: dist.Work | None = None

    def __call__(self, wish: Wish) -> Wish:
        """What the ranks agreed on; every rank calls it at the same steps."""
        if self._alone:
            return wish
        self._num_calls += 1
        if self._num_calls % self._every_steps:
            return Wish.NOTHING
        self.settle()
        granted = Wish(int(self._wish.item()))
        self._wish.fill_(Wish.NOTHING if granted else wish)  # what is granted was asked for twice
        self._sent = dist.all_reduce(self._wish, op=dist.ReduceOp.MAX, async_op=True)
        return granted

    def settle(self) -> None:
        """Waits for what was sent off, so that no rank leaves while another needs it."""
        if self._sent is not None:
            self._sent.wait()
            self._sent = None


def explain_loss(world: World, error: RuntimeError) -> str | None:
    """What an error in the exchange between ranks means; None where it is another error.

    After a time-out the ranks that still answer report to the store: the others are named.
    """
    text = str(error)
    timed_out = any(sign in text for sign in TIMED_OUT)
    gone = isinstance(error, dist.DistError) or any(sign in text for sign in GONE)
    if world.store is None or not (timed_out or gone):
        return None
    present: set[int] = set()
    caller = threading.Thread(target=_roll_call, args=(world, timed_out, present), daemon=True)
    caller.start()
    caller.join(2 * ROLL_CALL_SECONDS)  # the store is silent where its own rank hangs
    if not timed_out:
        cause = text.strip().partition("\n")[0]
        return f"the connection to another rank was lost: {cause}"
    silent = sorted(set(range(world.size)) - present) if present else [0]
    names = ", ".join(str(rank) for rank in silent)
    return f"no answer for {world.timeout_seconds:g} s from rank {names or 'unknown'}"


def _roll_call(world: World, timed_out: bool, present: set[int]) -> None:
    """Reports this rank to the store; after a time-out, adds to `present` those that do so too."""
    assert world.store is not None
    try:
        world.store.set(f"waiting/{world.rank}", "")
        if timed_out:
            time.sleep(ROLL_CALL_SECONDS)
            ranks = range(world.size)
            present |= {rank for rank in ranks if world.store.check([f"waiting/{rank}"])}
    except RuntimeError:
        return  # the store went with its rank
