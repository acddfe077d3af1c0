"""A rank for the tests of launch: notes that it began, then ends as its arguments say.

Only one that joins the others imports torch, which takes seconds.
"""

import os
import signal
import sys
import time
from pathlib import Path

from pipeline.atomic import write_whole
from trainer.launch import begin_rank, claim_end, end_rank

LONGEST_SECONDS = 60.0


def _join_and_be_killed(rank: int, begun: int) -> None:
    """Exchanges with the other rank; then one of the two is killed, by turns, three times."""
    import torch
    import torch.distributed as dist

    from trainer.world import joined

    with joined("cpu", LONGEST_SECONDS):
        total = torch.ones(1)
        for _ in range(3):
            dist.all_reduce(total)
        if begun < 3 and rank == begun % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()


def main(folder: Path, way: str) -> None:
    """Ends the way named; `folder` is where it leaves what the test looks at."""
    begin_rank()
    rank, begun = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda got, frame: asked.append(got))
        if way == "start-up":  # before there is anyone to ask
            signal.signal(number, signal.SIG_DFL)
    note = folder / f"rank-{rank}-restart-{begun}"
    write_whole(note, f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}".encode())
    if way == "succeed":
        return
    if way == "refuse":
        if claim_end(3):
            print("refused, told once")
        end_rank(3)
    if way == "join":
        _join_and_be_killed(int(rank), int(begun))
        return
    if way == "crash" or (way == "crash-once" and rank == "1" and begun == "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "crash-once" and begun == "1":
        return
    started = time.monotonic()
    while not asked and time.monotonic() - started < LONGEST_SECONDS:
        time.sleep(0.02)
    write_whole(note.with_name(f"{note.name}-got"), str(asked).encode())
    end_rank(75)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
