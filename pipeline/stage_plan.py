"""Which shards an epoch needs from which step to which: computed from its order alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StagePlan:
    """The shards that the rest of an epoch needs, each once, in the order of their first use.

    steps_ahead: how many steps beyond the next one to be delivered may be read already.
    """

    numbers: NDArray[np.int64]  # (S,), of shards
    first: NDArray[np.int64]  # (S,), the step that uses it first, ascending
    last: NDArray[np.int64]  # (S,), the step that uses it last
    steps_ahead: int

    def wanted(self, step: int, num_ahead: int) -> list[int]:
        """What is to be there before `step` is delivered: what it and the steps ahead need.

        Of the shards that only later steps use, the first `num_ahead` come behind them.
        """
        end = int(np.searchsorted(self.first, step + self.steps_ahead, "right")) + num_ahead
        return list(self.numbers[:end][self.last[:end] >= step].tolist())

    def turns(self) -> frozenset[int]:
        """The steps at which what is wanted changes."""
        return frozenset([*(self.last + 1).tolist(), *(self.first - self.steps_ahead).tolist()])

    def most_bytes(self, shard_bytes: Sequence[int]) -> int:
        """The most bytes that are needed at one time; shard_bytes: of all shards of the split."""
        sizes = np.asarray(shard_bytes, np.int64)[self.numbers]
        times = np.concatenate([self.first - self.steps_ahead, self.last + 1])
        changes = np.concatenate([sizes, -sizes])
        return int(changes[np.lexsort((changes, times))].cumsum().max(initial=0))


def plan_stage(
    coming: NDArray[np.integer], batch_size: int, step: int, steps_ahead: int
) -> StagePlan:
    """The plan of an epoch from `step` on.

    coming: (rows left,), the shard of each row from the first of `step` to the last of the epoch,
    in the epoch's order. batch_size: of all ranks.
    """
    places = np.arange(len(coming))
    first = np.full(int(coming.max(initial=0)) + 1, -1)
    last = first.copy()
    last[coming] = places  # of a shard's rows, the last one assigned stays
    first[coming[::-1]] = places[::-1]
    used = np.flatnonzero(first >= 0)
    numbers = used[np.argsort(first[used])]
    return StagePlan(
        numbers=numbers,
        first=step + first[numbers] // batch_size,
        last=step + last[numbers] // batch_size,
        steps_ahead=steps_ahead,
    )
