"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """Cores this process is bound to (containers and job schedulers bind it to fewer)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
