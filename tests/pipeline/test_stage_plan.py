"""The plan against its definition, step by step, over random orders."""

import numpy as np
import pytest

from pipeline.order import order
from pipeline.stage_plan import plan_stage


@pytest.mark.parametrize("window", ["all", 1, 2, 5])
@pytest.mark.parametrize(
    ("batch_size", "steps_ahead", "first_step"), [(1, 0, 0), (4, 2, 0), (4, 5, 3), (39, 1, 0)]
)
def test_wanted_is_what_the_steps_read_ahead_use_and_then_the_next_ones(
    window: int | str, batch_size: int, steps_ahead: int, first_step: int
) -> None:
    sizes = [9, 7, 1, 9, 5, 8]
    shard_of_row = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)
    rows = order(sizes, 0, 0, "all" if window == "all" else int(window))
    coming = shard_of_row[rows[first_step * batch_size :]]
    plan = plan_stage(coming, batch_size, first_step, steps_ahead)
    starts = range(0, len(coming), batch_size)
    of_step = [set(coming[start : start + batch_size].tolist()) for start in starts]
    steps = range(first_step, first_step + len(of_step))
    in_order = list(dict.fromkeys(coming.tolist()))
    shard_bytes = [10, 200, 3000, 40_000, 500_000, 6_000_000]
    most, before = 0, None
    for step in steps:
        done = set().union(*of_step[step - first_step :])
        ahead = of_step[: step - first_step + steps_ahead + 1]
        # What earlier steps used and later ones use again is needed in between as well.
        needed = [s for s in in_order if s in set().union(*ahead) and s in done]
        assert plan.wanted(step, 0) == needed
        most = max(most, sum(shard_bytes[s] for s in needed))
        assert before in (None, needed) or step in plan.turns()
        before = needed
        more = plan.wanted(step, 2)
        later = [s for s in in_order if s not in set().union(*ahead)]
        assert more == needed + later[:2]
    assert plan.wanted(steps[-1] + 1, 6) == []
    assert plan.most_bytes(shard_bytes) == most


def test_nothing_left_needs_nothing() -> None:
    plan = plan_stage(np.empty(0, np.uint32), 8, 4, 3)
    assert plan.wanted(4, 5) == [] and plan.most_bytes([1, 2]) == 0
