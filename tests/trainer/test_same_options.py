"""Ranks that were asked for different runs are told of it before they exchange anything else."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.trainer.ranks import run_ranks
from trainer.collectives import Group
from trainer.config import RunConfig
from trainer.same_options import OF_A_MACHINE, options_of, require_same
from trainer.session import Session
from trainer.world import World

CPU = torch.device("cpu")
DIFFERENT: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 8}, "options.batch_size is 4, asked for 8"),
    ({"settings": ("momentum=0.5",)}, "options.settings are 0 (), asked for 1 (momentum=0.5)"),
    ({"parallel": "columns"}, "options.parallel is 'data', asked for 'columns'"),
    ({"save_every_minutes": 5.0}, "options.save_every_minutes is None, asked for 5.0"),
]


def refusals(shards: Path, out: Path) -> list[str]:
    """What each run says in which rank 1, and it alone, has other options."""
    found = []
    for number, (other, _) in enumerate(DIFFERENT):
        options: dict[str, Any] = {"batch_size": 4, "parallel": "data", **{
            name: value for name, value in other.items() if dist.get_rank() == 1
        }}  # fmt: skip
        config = RunConfig(
            shards=shards, out=out / str(number), device="cpu", width=1 / 32, **options
        )
        try:
            Session(config, World(device=CPU, rank=dist.get_rank(), size=2, local_size=2))
        except ValueError as error:
            found.append(str(error))
    return found


def test_what_differs_is_named_on_every_rank_and_nothing_is_written(
    shard_folder: Path, tmp_path: Path
) -> None:
    for found in run_ranks(2, refusals, shard_folder, tmp_path):
        for told, (_, expected) in zip(found, DIFFERENT, strict=True):
            assert told == (
                f"the processes were not started alike; of rank 0 and rank 1 {expected}"
            )
    assert not list(tmp_path.iterdir())


def third_differs() -> str:
    try:
        require_same({"x": max(1, dist.get_rank()) ** 40}, Group(dist.group.WORLD), CPU)
    except ValueError as error:
        return str(error)
    return ""


def test_the_rank_that_differs_is_the_one_named() -> None:
    """Also where what they say is of different lengths."""
    assert run_ranks(3, third_differs) == [
        "the processes were not started alike; of rank 0 and rank 2 x is 1, asked for "
        f"{2**40}"
    ] * 3


def test_paths_and_what_a_machine_has_of_its_own_may_differ() -> None:
    one, other = RunConfig(shards=Path("a")), RunConfig(shards=Path("b"), loader_threads=3)
    assert options_of(one) == options_of(other)
    assert set(OF_A_MACHINE) < set(vars(one))
    require_same({"anything": 1}, Group(), CPU)
