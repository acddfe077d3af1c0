"""The ledger of an epoch: which sample ids each rank got at each step; and whether they add up.

A ledger file is JSON lines: the first says what the epoch was, each other one holds the ids that
one rank got at one step, in the order of its batch, as {"step": 0, "rank": 0, "ids": [...]}. Lines
may come in any order. The check of a ledger knows how many images, ranks and images a step there
are, and nothing of how an order is made.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.atomic import whole_file
from pipeline.order import Rows, num_steps, rank_part

LEDGER_VERSION = 1
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """What one rank got at one step. ids: int64 (its part of the global batch,)."""

    step: int
    rank: int
    ids: Ids


@dataclass(frozen=True)
class Account:
    """What a ledger adds up to; problems is empty where each sample came exactly once."""

    num_steps: int  # there should be
    num_distinct: int  # sample ids
    num_missing: int  # sample ids of the split that did not come
    problems: tuple[str, ...]


def planned_parts(
    sample_ids: Ids, rows: Rows, batch_size: int, world_size: int, *, training: bool
) -> Iterator[Part]:
    """An epoch as the pure functions of order.py have it, step by step, rank by rank.

    sample_ids: (index row,). rows: (position,), the epoch's order. batch_size: of all ranks.
    """
    ids = np.asarray(sample_ids, np.int64)[rows]  # ids: (position,)
    for step in range(num_steps(len(rows), batch_size, training=training)):
        for rank in range(world_size):
            first, last = rank_part(len(rows), batch_size, step, rank, world_size)
            yield Part(step, rank, ids[first:last])


def write_ledger(path: Path, epoch: Mapping[str, Any], parts: Sequence[Part]) -> None:
    """Writes a ledger file, whole or not at all; epoch: what the parts are of, JSON-able."""
    with whole_file(path) as file:
        head = {"ledger_version": LEDGER_VERSION, **epoch}
        file.write((json.dumps(head) + "\n").encode())
        for part in parts:
            line = {"step": part.step, "rank": part.rank, "ids": part.ids.tolist()}
            file.write((json.dumps(line) + "\n").encode())


def read_ledger(path: Path) -> tuple[dict[str, Any], list[Part]]:
    """What a ledger file is of, and its parts; ValueError naming the line that is damaged."""
    number = 1
    try:
        with open(path, "rb") as file:
            head = json.loads(file.readline())
            if head["ledger_version"] != LEDGER_VERSION:
                raise ValueError(f"its ledger_version is not {LEDGER_VERSION}")
            parts = []
            for number, line in enumerate(file, 2):
                entry = json.loads(line)
                ids = np.array(entry["ids"], np.int64)
                parts.append(Part(int(entry["step"]), int(entry["rank"]), ids))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}, line {number} is no line of a ledger: {error!r}") from error
    return head, parts


def check_parts(
    parts: Sequence[Part], sample_ids: Ids, batch_size: int, world_size: int, *, training: bool
) -> Account:
    """Whether each sample of a split came exactly once, in even parts of whole batches.

    parts: of one epoch, in any order. sample_ids: (sample,), those of the split. batch_size: of
    all ranks. In training the last partial batch must be missing, otherwise nothing.
    """
    num_whole, rest = divmod(len(sample_ids), batch_size)
    in_step = np.full(num_whole, batch_size)  # in_step: (step,)
    if rest and not training:
        in_step = np.append(in_step, rest)
    table, problems = _table(parts, len(in_step), world_size)
    sizes = np.maximum(table, 0)  # sizes: (step, rank)
    wrong = np.flatnonzero(sizes.sum(1) != in_step)
    if len(wrong):
        problems.append(
            f"{len(wrong):,} steps are not of the size they should be: step {wrong[0]} has "
            f"{sizes[wrong[0]].sum():,} samples of {in_step[wrong[0]]:,}"
        )
    uneven = np.flatnonzero(np.ptp(sizes, axis=1) > (0 if training else 1))
    if len(uneven):
        problems.append(
            f"{len(uneven):,} steps are not split evenly over the ranks: step {uneven[0]} as "
            f"{sizes[uneven[0]].tolist()}"
        )
    num_missing, more = _check_ids(parts, sample_ids, num_left=rest if training else 0)
    return Account(
        num_steps=len(in_step),
        num_distinct=len(sample_ids) - num_missing,
        num_missing=num_missing,
        problems=(*problems, *more),
    )


def num_differing(parts: Sequence[Part], expected: Sequence[Part]) -> int:
    """How many parts are not those expected of their step and rank, or have no counterpart."""
    ids = {(part.step, part.rank): part.ids for part in expected}
    num_same = 0
    for part in parts:
        own = ids.get((part.step, part.rank))
        num_same += own is not None and np.array_equal(part.ids, own)
    return max(len(parts), len(expected)) - num_same


def _table(
    parts: Sequence[Part], steps: int, world_size: int
) -> tuple[NDArray[np.int64], list[str]]:
    """The size of each part, (step, rank), -1 where there is none; and what parts are wrong."""
    problems: list[str] = []
    table = np.full((steps, world_size), -1)
    num_foreign = num_repeated = 0
    for part in parts:
        if not (0 <= part.step < steps and 0 <= part.rank < world_size):
            num_foreign += 1
        elif table[part.step, part.rank] >= 0:
            num_repeated += 1
        else:
            table[part.step, part.rank] = len(part.ids)
    if num_foreign:
        problems.append(
            f"{num_foreign:,} parts are of no step in 0..{steps - 1} and rank in "
            f"0..{world_size - 1}"
        )
    if num_repeated:
        problems.append(f"{num_repeated:,} parts are of a step and rank that came before")
    lacking = np.argwhere(table < 0)
    if len(lacking):
        step, rank = lacking[0]
        problems.append(f"{len(lacking):,} parts are missing: step {step}, rank {rank}, ...")
    return table, problems


def _check_ids(
    parts: Sequence[Part], sample_ids: Ids, *, num_left: int
) -> tuple[int, list[str]]:
    """How many samples are missing (num_left should be), and what is wrong."""
    ids = np.concatenate([np.empty(0, np.int64), *(part.ids for part in parts)])
    bound = int(sample_ids.max(initial=-1)) + 1
    is_known = np.zeros(bound, bool)
    is_known[sample_ids] = True
    within = (ids >= 0) & (ids < bound)
    visits = np.bincount(ids[within], minlength=bound)  # visits: (sample id,)
    num_missing = int((visits[is_known] == 0).sum())
    num_foreign = int((~within).sum() + visits[~is_known].sum())
    repeated = np.flatnonzero(is_known & (visits > 1))
    problems = []
    if num_foreign:
        problems.append(f"{num_foreign:,} samples are not of the split")
    if len(repeated):
        first = repeated[0]
        problems.append(
            f"{len(repeated):,} samples came more than once: sample {first} {visits[first]} times"
        )
    if num_missing != num_left:
        problems.append(f"{num_missing:,} samples are missing, {num_left:,} should be")
    return num_missing, problems
