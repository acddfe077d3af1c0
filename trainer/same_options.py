"""Whether all ranks were asked for the same run: several machines have a command line each."""

import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from trainer.collectives import Group
from trainer.config import RunConfig
from trainer.description import differences

# Of a machine, not of the run: paths, and what only a loader or a launcher looks at.
OF_A_MACHINE = (
    "shards", "out", "config_file", "init_from", "loader_threads", "prefetch", "stage_dir",
    "stage_bytes", "calibrate", "processes", "max_restarts",
)  # fmt: skip


def options_of(config: RunConfig) -> dict[str, Any]:
    """What must be the same on every rank before the first exchange, JSON-able."""
    options = {k: v for k, v in asdict(config).items() if k not in OF_A_MACHINE}
    return {"options": options, "fullfeed": version("fullfeed"), "torch": torch.__version__}


def require_same(mine: dict[str, Any], ranks: Group, device: torch.device) -> None:
    """ValueError on every rank where one's `mine` is not rank 0's, naming rank and difference.

    mine: JSON-able. Every rank calls it.
    """
    if ranks.size == 1:
        return
    text = torch.frombuffer(bytearray(json.dumps(mine).encode()), dtype=torch.uint8).to(device)
    sizes = ranks.all_gather(torch.tensor([len(text)], device=device), 0).tolist()
    padded = text.new_zeros(max(sizes))
    padded[: len(text)] = text
    texts = ranks.all_gather(padded[None], 0)
    first, *others = (_read(row[:size]) for row, size in zip(texts, sizes, strict=True))
    for rank, other in enumerate(others, 1):
        if different := differences(first, other):
            raise ValueError(
                f"the processes were not started alike; of rank 0 and rank {rank} "
                f"{'; '.join(different)}"
            )


def _read(row: Tensor) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(bytes(row.cpu().numpy()))
    return value
