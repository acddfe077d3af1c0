"""A rank's place, what ranks agree on, and what their losing each other is called."""

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from tests.trainer.ranks import run_ranks
from trainer import world
from trainer.world import AGREE_STEPS, Agreement, Wish, World, explain_loss, joined

CPU = torch.device("cpu")


def here(device: str = "cpu") -> World:
    return World(device=torch.device(device), rank=dist.get_rank(), size=dist.get_world_size())


CASES: list[tuple[str, dict[int, int], int | None]] = [
    ("cpu", {1: 3}, 4),
    ("cpu", {0: 3, 2: 5}, 4),
    ("cpu", {}, None),
    ("cuda", {1: 2 * AGREE_STEPS}, 3 * AGREE_STEPS),
]


def granted_in_each() -> list[int | None]:
    return [granted(device, wishes, 4 * AGREE_STEPS) for device, wishes, _ in CASES]


def granted(device: str, wishes: dict[int, int], num_steps: int) -> int | None:
    """The step, from 1, in which a wish was granted; wishes: rank -> step of its wish."""
    agreed, found = Agreement(here(device)), None
    for step in range(1, num_steps + 1):
        mine = wishes.get(dist.get_rank(), num_steps + 1)
        wish = Wish.STOP if found is None and step >= mine else Wish.NOTHING
        if agreed(wish) == Wish.STOP:
            assert found is None
            found = step
    agreed.settle()
    return found


def test_a_wish_of_one_rank_is_granted_to_all_in_the_same_step() -> None:
    assert run_ranks(3, granted_in_each) == [[step for _, _, step in CASES]] * 3


def test_a_process_alone_agrees_at_once() -> None:
    agreed = Agreement(World(device=CPU))
    assert [agreed(wish) for wish in Wish] == list(Wish)


def test_without_a_launcher_there_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with joined("cpu", 30) as found:
        assert (found.rank, found.size, found.device) == (0, 1, CPU)
        assert found.is_first and found.one_machine and not dist.is_initialized()


def test_ranks_that_wait_name_the_one_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(world, "ROLL_CALL_SECONDS", 0.1)
    store = HashStore()
    store.set("waiting/0", "")
    late = World(device=CPU, rank=1, size=3, store=store, timeout_seconds=7)
    timed_out = RuntimeError("[unbound_buffer.cc:84] Timed out waiting 7000ms for recv")
    assert explain_loss(late, timed_out) == "no answer for 7 s from rank 2"
    gone = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
    lost = "the connection to another rank was lost: "
    assert explain_loss(late, gone) == lost + str(gone)
    unstarted = dist.DistBackendError("NCCL error: unhandled system error\nLast error:\nsocket")
    assert explain_loss(late, unstarted) == lost + "NCCL error: unhandled system error"
    assert explain_loss(late, RuntimeError("out of memory")) is None
    assert explain_loss(World(device=CPU), timed_out) is None
