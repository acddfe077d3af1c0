"""How many processor cores this process may use."""

import os

LOCAL_RANKS = "LOCAL_WORLD_SIZE"  # torchrun tells every rank how many of them share its host


def available_cores() -> int:
    """Cores this process is bound to (containers and job schedulers bind it to fewer)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ranks_here(local_world_size: int | None = None) -> int:
    """How many ranks share this host: those given, else what torchrun says, or one without it.

    ValueError where the environment says no number of ranks.
    """
    if local_world_size is not None:
        return local_world_size
    told = os.environ.get(LOCAL_RANKS, "1")
    if not (told.isdecimal() and int(told) >= 1):
        raise ValueError(f"{LOCAL_RANKS} is {told!r} in the environment, must be at least 1")
    return int(told)


def cores_of_rank(local_world_size: int | None = None) -> int:
    """This process's even share of its cores among the ranks of this host; at least 1.

    local_world_size: see `ranks_here`.
    """
    return max(1, available_cores() // ranks_here(local_world_size))
