"""A rank for the tests of launch: notes that it began, then ends as its arguments say."""

import os
import signal
import sys
import time
from pathlib import Path

from pipeline.atomic import write_whole
from trainer.launch import begin_rank, claim_end, end_rank

LONGEST_SECONDS = 60.0


def main(folder: Path, way: str) -> None:
    """Ends the way named; `folder` is where it leaves what the test looks at."""
    begin_rank()
    rank, begun = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda got, frame: asked.append(got))
    note = folder / f"rank-{rank}-restart-{begun}"
    write_whole(note, f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}".encode())
    if way == "succeed":
        return
    if way == "refuse":
        if claim_end(3):
            print("refused, told once")
        end_rank(3)
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
