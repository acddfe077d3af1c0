"""Runs a function in several gloo ranks on this machine, and gives back what each returned."""

import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

PATIENCE_SECONDS = 600.0


def run_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """function(*arguments) in `num_ranks` processes that share a process group; their results.

    RuntimeError with the traceback of the first rank that failed. function: of a module's level.
    """
    with TemporaryDirectory(prefix="ranks-") as folder:
        context = torch.multiprocessing.get_context("spawn")
        ranks = [
            context.Process(target=_rank, args=(rank, num_ranks, folder, function, arguments))
            for rank in range(num_ranks)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(PATIENCE_SECONDS)
            if process.is_alive():
                process.kill()
        failures = sorted(Path(folder).glob("*.failed"))
        if failures:
            raise RuntimeError(failures[0].read_text())
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(num_ranks)]


def _rank(
    rank: int, num_ranks: int, folder: str, function: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=PATIENCE_SECONDS / 2),
        )
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"{rank}.failed").write_text(traceback.format_exc())
