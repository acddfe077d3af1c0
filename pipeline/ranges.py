"""Names for what a loader does, in the timeline of NVIDIA Nsight Systems.

NVTX comes with DALI. Without it, or without a profiler, functions are left as they are: no cost.
"""

from collections.abc import Callable
from typing import Any, TypeVar

try:
    from nvtx import annotate
except ImportError:
    annotate = None

DOMAIN = "fullfeed"
Function = TypeVar("Function", bound=Callable[..., Any])


def shown(name: str) -> Callable[[Function], Function]:
    """Has every call of a function shown as a range of this name, on the thread that makes it."""
    if annotate is None:
        return lambda function: function
    decorate: Callable[[Function], Function] = annotate(message=name, domain=DOMAIN)
    return decorate
