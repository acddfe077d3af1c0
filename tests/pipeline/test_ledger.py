"""A ledger holds what each rank got; its check finds whatever is not exactly once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ledger import (
    Account,
    Part,
    check_parts,
    num_differing,
    planned_parts,
    read_ledger,
    write_ledger,
)
from pipeline.order import Window, local_order, order

exactly = settings(derandomize=True, deadline=None, max_examples=80)
SIZES = [9, 4, 8]
IDS = np.delete(np.arange(25), [3, 7, 11, 20])[::-1].copy()  # 21 of them, four gaps
Change = Callable[[list[Part]], list[Part]]


def parts_of(*, training: bool, window: Window = "all", world_size: int = 2) -> list[Part]:
    """Global batches of four: five whole ones and one sample more."""
    rows = order(SIZES, 5, 1, window) if training else np.arange(len(IDS))
    return list(planned_parts(IDS, rows, 4, world_size, training=training))


def checked(parts: list[Part], *, training: bool) -> Account:
    return check_parts(parts, IDS, 4, 2, training=training)


@exactly
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    window=st.one_of(st.just("all"), st.just("local"), st.integers(1, 9)),
    world_size=st.integers(1, 5),
    per_rank=st.integers(1, 6),
    training=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_planned_epoch_is_exactly_once(
    sizes: list[int], window: Any, world_size: int, per_rank: int, training: bool, seed: int
) -> None:
    num_samples, batch_size = sum(sizes), world_size * per_rank
    ids = np.random.default_rng(sizes).permutation(2 * num_samples)[:num_samples]  # with gaps
    rows = np.arange(num_samples)
    if training and window == "local":  # each rank from its own share
        rows = local_order(num_samples, seed, 3, batch_size, world_size)
    elif training:
        rows = order(sizes, seed, 3, window)
    parts = list(planned_parts(ids, rows, batch_size, world_size, training=training))
    account = check_parts(parts[::-1], ids, batch_size, world_size, training=training)
    dropped = num_samples % batch_size if training else 0
    assert account.problems == ()
    assert (account.num_missing, account.num_distinct) == (dropped, num_samples - dropped)
    assert account.num_steps * world_size == len(parts)


def test_the_parts_of_a_step_are_the_positions_of_its_global_batch() -> None:
    rows = order(SIZES, 5, 1, 2)
    parts = parts_of(training=True, window=2)
    assert [(part.step, part.rank) for part in parts] == [(k // 2, k % 2) for k in range(10)]
    assert np.concatenate([part.ids for part in parts]).tolist() == IDS[rows[:20]].tolist()


def changed(place: int, **values: object) -> Change:
    return lambda parts: [
        replace(part, **values) if i == place else part  # type: ignore[arg-type]
        for i, part in enumerate(parts)
    ]


def with_id(value: int) -> Change:
    """Puts `value` in place of the first id of part 4."""
    return lambda parts: changed(4, ids=np.array([value, *parts[4].ids[1:]]))(parts)


def first_id_again(parts: list[Part]) -> list[Part]:
    return with_id(int(parts[0].ids[0]))(parts)


def one_id_handed_over(parts: list[Part]) -> list[Part]:
    """Rank 1 of step 2 gets one of rank 0's samples as well as its own."""
    both = np.concatenate([parts[4].ids, parts[5].ids])
    return changed(5, ids=both[1:])(changed(4, ids=both[:1])(parts))


HARMS: list[tuple[Change, str]] = [
    (lambda parts: parts[1:], "1 parts are missing: step 0, rank 0"),
    (lambda parts: [*parts, parts[3]], "1 parts are of a step and rank that came before"),
    (lambda parts: [*parts, parts[3]], "2 samples came more than once"),
    (changed(3, step=17), "1 parts are of no step in 0.."),
    (changed(3, rank=2), "rank in 0..1"),
    (changed(3, rank=-1), "rank in 0..1"),
    (changed(3, ids=np.empty(0, np.int64)), "step 1 has 2 samples of 4"),
    (first_id_again, "1 samples came more than once: sample"),
    (with_id(7), "1 samples are not of the split"),
    (with_id(-1), "1 samples are not of the split"),
    (with_id(2**40), "1 samples are not of the split"),
    (one_id_handed_over, "1 steps are not split evenly over the ranks: step 2 as [1, 3]"),
]


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize(("harm", "problem"), HARMS)
def test_whatever_is_not_exactly_once_is_named(
    harm: Change, problem: str, training: bool
) -> None:
    parts = parts_of(training=training)
    assert checked(parts, training=training).problems == ()
    problems = checked(harm(parts), training=training).problems
    assert any(problem in text for text in problems), problems


def test_an_epoch_that_lost_samples_is_told_from_one_that_dropped_a_batch() -> None:
    parts = parts_of(training=True)
    assert checked(parts, training=True).num_missing == 1
    assert "1 samples are missing, 0 should be" in checked(parts, training=False).problems
    whole = parts_of(training=False)
    assert "0 samples are missing, 1 should be" in checked(whole, training=True).problems
    assert checked([], training=True) == Account(
        5, 0, 21, ("10 parts are missing: step 0, rank 0, ...",
                   "5 steps are not of the size they should be: step 0 has 0 samples of 4",
                   "21 samples are missing, 1 should be"),
    )  # fmt: skip


def test_parts_unlike_those_expected_are_counted() -> None:
    parts = parts_of(training=False)
    assert num_differing(parts, parts) == num_differing(parts[::-1], parts) == 0
    assert num_differing(changed(1, ids=parts[1].ids[::-1])(parts), parts) == 1
    assert num_differing(changed(1, rank=0)(parts), parts) == 1
    assert num_differing(parts[:-3], parts) == num_differing(parts, parts[:-3]) == 3


def test_a_ledger_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    parts = parts_of(training=False, world_size=4)  # the last step has empty parts
    write_ledger(tmp_path / "ledger.jsonl", {"split": "val", "epoch": 1}, parts)
    head, found = read_ledger(tmp_path / "ledger.jsonl")
    assert head == {"ledger_version": 1, "split": "val", "epoch": 1}
    assert [(p.step, p.rank, p.ids.tolist()) for p in found] == [
        (p.step, p.rank, p.ids.tolist()) for p in parts
    ]
    assert all(part.ids.dtype == np.int64 for part in found)
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1 + len(parts)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]  # no .tmp


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, ""), (1, "[]"), (1, "{}"), (1, '{"ledger_version": 2}'), (3, '{"step": 0, "rank": 0'),
        (2, '{"step": 0, "rank": 0}'), (3, '{"step": 0, "rank": 0, "ids": ["a"]}'),
        (2, '{"step": 0, "rank": null, "ids": []}'), (2, "null"),
        (2, '{"step": 0, "rank": 0, "ids": [1e400]}'),
    ],
)  # fmt: skip
def test_a_damaged_line_of_a_ledger_is_named(tmp_path: Path, number: int, line: str) -> None:
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, {}, parts_of(training=True))
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines if line else []))
    with pytest.raises(ValueError, match=rf"ledger.jsonl, line {number} is no line of a ledger"):
        read_ledger(path)


def test_a_split_without_images_adds_up_to_nothing() -> None:
    nothing = np.empty(0, np.int64)
    parts = list(planned_parts(nothing, nothing, 8, 2, training=False))
    account = check_parts(parts, nothing, 8, 2, training=False)
    assert (account.num_steps, account.num_distinct, account.problems) == (0, 0, ())
    foreign = [Part(0, 0, np.array([3]))]
    assert check_parts(foreign, nothing, 8, 1, training=False).problems
