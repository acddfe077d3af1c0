"""A trace of some steps, for https://ui.perfetto.dev: what runs when, and beside what."""

import os
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

WARM_STEPS = 3  # at the beginning, in which kernels are chosen and memory is allocated


def trace_name(rank: int) -> str:
    """Of the file in the run folder; each rank writes one."""
    return f"trace-rank-{rank}.json"


class StepTrace:
    """Records steps of this process, once; `step` is called between any two.

    In the trace, the ranges `forward` and `backward` are the trainer's; `send bucket N` is where
    gradients leave and `wait for bucket N` where they are waited for; the collectives themselves
    (`gloo:all_reduce`, NCCL's kernels) lie on threads, or streams, of their own.
    """

    def __init__(self, path: Path, num_steps: int | None, device: torch.device) -> None:
        """num_steps: None for none."""
        self._path, self._num_steps = path, num_steps
        self._num_seen = 0
        self._profile: profile | None = None
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)

    def step(self) -> None:
        """One step has ended."""
        if self._num_steps is None:
            return
        self._num_seen += 1
        if self._num_seen == WARM_STEPS:
            self._profile = profile(activities=self._activities)
            self._profile.start()
        elif self._num_seen == WARM_STEPS + self._num_steps:
            self.close()

    def close(self) -> None:
        """Writes what was recorded, if it is not written yet."""
        if self._profile is None:
            return
        recorded, self._profile = self._profile, None
        recorded.stop()
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        try:
            recorded.export_chrome_trace(str(temporary))
            os.replace(temporary, self._path)  # torch (2.13) tells of a full disk, and returns
        except (OSError, RuntimeError) as error:
            told = f"warning: {self._path} not written: {error}; training goes on"
            print(told, file=sys.stderr, flush=True)
