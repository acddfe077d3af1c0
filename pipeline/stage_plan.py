"""Which shards an epoch needs from which step to which, and whether they can all be held."""

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.byte_size import show_bytes
from pipeline.order import Window

SPARE_FILES = 64  # of a process, for all that is no staged shard


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


def require_room(
    source: Path, shard_bytes: Sequence[int], window: Window, max_bytes: int
) -> None:
    """ValueError, with both ways out, where the shards read at one time do not fit.

    source: their folder. window: of the order, 1 for validation. max_bytes: the stage's bound.
    """
    total = sum(shard_bytes)
    if window == "all" and total > max_bytes:
        raise ValueError(
            f"--window all reads from all {len(shard_bytes)} shards of {source} at any time: "
            f"{show_bytes(total)}, --stage-bytes is {show_bytes(max_bytes)}; give a larger "
            "--stage-bytes, or --window W to read from W shards at a time"
        )
    if window != "all":
        num_shards = min(2 * window, len(shard_bytes))
        needed = sum(sorted(shard_bytes)[-num_shards:])
        if needed > max_bytes:
            raise ValueError(
                f"{source}: {num_shards} shards are read where one window of {window} follows "
                f"another: {show_bytes(needed)}, --stage-bytes is {show_bytes(max_bytes)}; give a "
                "larger --stage-bytes" + (", or a smaller --window" if window > 1 else "")
            )


def require_files(source: Path, num_shards: int, window: Window) -> None:
    """Lets this process open so many files more: a held shard is an open one.

    Raises its soft limit, which is often 1,024, within the hard one; what others of the process
    may open stays theirs. ValueError, with both ways out, where the hard limit is too low.
    source: the folder of the shards. window: of their order.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_bounded = hard != resource.RLIM_INFINITY
    if is_bounded and num_shards + SPARE_FILES > hard:
        smaller = "give --window W to" if window == "all" else "give a smaller --window to"
        raise ValueError(
            f"{source}: up to {num_shards} shards are held open at a time, and a process may open "
            f"{hard} files here: allow more (`ulimit -n {num_shards + SPARE_FILES}`, as root, or "
            f"nofile in limits.conf; docker run --ulimit nofile=N), or {smaller} hold fewer"
        )
    if soft not in (hard, resource.RLIM_INFINITY):
        raised = min(soft + num_shards, hard) if is_bounded else soft + num_shards
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
