"""One process per GPU: starts them, passes signals on, restarts after a crash, ends with one code.

The ranks are run by torch's elastic agent. What it does not do is done here: it takes any rank
that ends with an error for a crash and starts all again, passes on no SIGUSR1, and does not share
the cores out.
"""

import ctypes
import dataclasses
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pipeline.cores import available_cores

NOTES_VARIABLE = "FULLFEED_LAUNCH"  # the folder in which launcher and ranks leave notes
END_NOTE, STOP_NOTE = "end", "stop"
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
FAILED, PREEMPTED = 1, 75
GRACE_SECONDS = 60  # for the other ranks to end when one has crashed
STORE_VARIABLE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
STORE_TOLD = (
    f"warning: {STORE_VARIABLE}=1 is not set for torchrun: processes that it starts again after a "
    f"crash may be given the addresses of the dead (pytorch issue 135712)"
)
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def is_rank() -> bool:
    """Whether this process was started by a launcher, this one or torchrun."""
    return "LOCAL_RANK" in os.environ


def launch(command: Sequence[str], *, processes: int, max_restarts: int) -> int:
    """Runs `command` in `processes` ranks of this machine; returns the code to exit with.

    command: program and arguments. A rank that crashes (a signal, an uncaught exception) ends the
    others, and all start again, at most `max_restarts` times; an end that a rank decided
    (`end_rank`) is not repeated. SIGINT, SIGTERM and SIGUSR1 go to every rank. Each rank gets its
    share of the cores (OMP_NUM_THREADS) unless the environment says otherwise.
    """
    # Imported here: a rank needs none of it.
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    grace: dict[str, Any] = {"shutdown_timeout": GRACE_SECONDS}
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    if not grace.keys() <= known:  # torch 2.11, which waits for its own 30 seconds
        grace = {}
    with tempfile.TemporaryDirectory(prefix="fullfeed-launch-") as folder:
        notes = Path(folder)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=max_restarts,
            signals_to_handle="SIGHUP,SIGQUIT",  # the others are passed on, not raised
            logs_specs=DefaultLogsSpecs(log_dir=folder),  # by default one that nobody removes
            **grace,
        )
        environment = _rank_environment(notes, processes)
        with _environment(environment), _signals_passed_on(notes) as passed:
            try:
                elastic_launch(config, command[0])(*command[1:])
            except (ChildFailedError, SignalException) as error:
                return _decided_end(notes) or _told(error, passed)
        return _decided_end(notes) or 0


def begin_rank() -> None:
    """The first thing a rank does: ends at once where the run has ended or is to stop already.

    Also has the kernel send SIGTERM should the launcher be killed (torchrun is by a SIGUSR1), so
    that no rank is left behind. Warns where torchrun was started so that a restart may fail.
    """
    if is_rank() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    notes = _notes()
    if notes is None:
        if _may_find_the_dead():
            print(STORE_TOLD, file=sys.stderr, flush=True)
        return
    if has_ended():
        sys.exit(0)
    if (notes / STOP_NOTE).exists():
        end_rank(PREEMPTED)


def _may_find_the_dead() -> bool:
    """Whether this is the first rank of a launcher that shares its store with restarted ranks."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    return is_rank() and shared and restarts and os.environ.get("RANK") == "0"


def claim_end(code: int) -> bool:
    """Notes that the run ends with `code`; False where another rank has noted its end before.

    Whoever gets True is the one to tell the user why.
    """
    notes = _notes()
    if notes is None:
        return True
    try:
        with open(notes / END_NOTE, "x", encoding="ascii") as file:
            file.write(str(code))
    except FileExistsError:
        return False
    return True


def end_unless_first(code: int) -> None:
    """Ends a rank with `code` where another has noted its end before, and so tells why."""
    if is_rank() and not claim_end(code):
        sys.exit(code)


def has_ended() -> bool:
    """Whether a rank has noted the end of the run."""
    notes = _notes()
    return notes is not None and (notes / END_NOTE).exists()


def end_rank(code: int) -> NoReturn:
    """Ends a rank by decision: preemption or a user's error, which no restart would mend.

    A preempted rank ends with 0 under any launcher, which would take another code for a crash;
    `launch` turns it into 75. A failed one ends with its code, so that the launcher ends the
    others, which may be waiting for it. A rank that was sent SIGTERM only because another crashed
    is not preempted: it ends, to be started again.
    """
    notes = _notes()
    if code == PREEMPTED and notes is not None and not (notes / STOP_NOTE).exists():
        sys.exit(FAILED)
    claim_end(code)
    sys.exit(0 if code == PREEMPTED and is_rank() else code)


def _notes() -> Path | None:
    folder = os.environ.get(NOTES_VARIABLE)
    return Path(folder) if folder else None


def _decided_end(notes: Path) -> int | None:
    try:
        return int((notes / END_NOTE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _told(error: Exception, passed: Set[int]) -> int:
    """The exit code of a crash that restarts did not mend, after saying which rank crashed.

    passed: signals that went to the ranks; one that died of these alone was still starting up.
    """
    failures = getattr(error, "failures", {})
    died_of = {-failure.exitcode for failure in failures.values() if failure.exitcode < 0}
    if died_of and died_of <= passed:
        return PREEMPTED
    for rank, failure in sorted(failures.items()):
        print(f"error: rank {rank} ended with exit code {failure.exitcode}", file=sys.stderr)
    return FAILED


def _rank_environment(notes: Path, processes: int) -> dict[str, str]:
    return {
        NOTES_VARIABLE: str(notes),
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", str(max(1, available_cores() // processes))
        ),
        # A store shared with the agent hands out addresses of killed ranks after a restart
        # (pytorch issue 135712).
        STORE_VARIABLE: "1",
    }


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_passed_on(notes: Path) -> Iterator[Set[int]]:
    """Within it PASSED_ON goes to the ranks; those that have yet to start find a note.

    Yields those that came.
    """
    passed: set[int] = set()

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.add(number)
        (notes / STOP_NOTE).touch()
        for child in _children():
            os.kill(child, number)

    old = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield passed
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _children() -> list[int]:
    """Process ids of this process's children."""
    import psutil

    return [child.pid for child in psutil.Process().children()]
