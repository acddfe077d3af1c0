"""Whether Triton's kernels run here, tried once: it is installed without all that it needs."""

import importlib.util
import warnings
from functools import cache

import torch


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@cache
def triton_works(device: torch.device) -> bool:
    """Whether a kernel runs on this NVIDIA GPU; where Triton is there and fails, warns once.

    (It needs a C compiler and Python's headers to launch anything, which many images lack.) Waits
    for the GPU, the first time.
    """
    if device.type != "cuda" or not has_triton():
        return False
    try:
        from pipeline.triton_gather import try_out

        try_out(device)
    except Exception as error:  # whatever a compiler, a driver or Triton itself makes of it
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"Triton's kernels do not run here, so slower forms are taken, with the same results: "
            f"{type(error).__name__}: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
