"""Shards are byte-identical for any number of workers, also after workers or all were killed."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from pipeline.engines import interrupts_blocked, interrupts_noted, run_tasks
from pipeline.manifest import DATASET_NAME, open_dataset
from pipeline.moments import MEAN_NAME, PCA_NAME
from pipeline.plan import Settings, plan
from pipeline.prepare import prepare
from pipeline.sources import open_source
from pipeline.tally import Tally
from tests.conftest import BROKEN, IMAGES_PER_SHARD, folder_bytes, prepare_here, write_source

ENTRY_FILE = Path(__file__).parents[2] / "tools" / "prepare_shards.py"


@pytest.fixture
def find_workers() -> Callable[[], list[BaseProcess]]:
    """The processes that a test has started, without those of other tests that stay."""
    before = multiprocessing.active_children()
    return lambda: [one for one in multiprocessing.active_children() if one not in before]


def test_two_workers_write_the_same_bytes_as_one(
    image_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    outcome = prepare_here(image_folder, tmp_path / "out", num_workers=2)
    expected = folder_bytes(shard_folder)
    del expected[PCA_NAME], expected[MEAN_NAME]
    assert folder_bytes(tmp_path / "out") == expected
    assert outcome.num_made == 7 and outcome.stages["train", "decode"] > 0


@pytest.mark.parametrize("num_workers", [1, 2])
def test_reports_never_fall_and_end_with_the_total(
    image_folder: Path, tmp_path: Path, num_workers: int
) -> None:
    source = open_source(image_folder)
    tasks = list(plan(source, tmp_path, Settings(images_per_shard=10)))
    reports: list[Tally] = []
    run_tasks(tasks, num_workers, reports.append)
    for field in ("images", "quarantined", "source_bytes"):
        values = [getattr(report, field) for report in reports]
        assert values == sorted(values)
    originals = [path for path in image_folder.rglob("*/*/*.jpg") if path.name[0] != "."]
    assert reports[-1] == Tally(
        images=sum(len(task.ids) for task in tasks),
        quarantined=len(BROKEN),
        source_bytes=sum(path.stat().st_size for path in originals),
    )


def test_no_tasks_are_done_at_once() -> None:
    reports: list[Tally] = []
    assert not run_tasks([], 4, reports.append) and not reports


def test_a_killed_worker_ends_the_run_with_advice_and_loses_nothing(
    image_folder: Path,
    shard_folder: Path,
    tmp_path: Path,
    find_workers: Callable[[], list[BaseProcess]],
) -> None:
    out = tmp_path / "out"

    def kill_one(done: Tally) -> None:
        children = find_workers()
        if done.images and children and children[0].pid:
            os.kill(children[0].pid, signal.SIGKILL)

    with pytest.raises(OSError, match=r"a worker process died .*start again .*fewer --workers"):
        prepare(
            open_source(image_folder),
            out,
            Settings(images_per_shard=3),
            lambda tasks: run_tasks(tasks, 2, kill_one),
        )
    finished = {path.name: path.read_bytes() for path in out.glob("*.receipt.json")}
    outcome = prepare_here(image_folder, out, images_per_shard=3)
    assert outcome.num_kept == len(finished)
    assert {name: (out / name).read_bytes() for name in finished} == finished
    prepare_here(image_folder, tmp_path / "undisturbed", images_per_shard=3)
    assert folder_bytes(out) == folder_bytes(tmp_path / "undisturbed")


def test_an_error_in_a_worker_is_raised_here(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=4, val_per_class=1)
    tasks = list(plan(open_source(source), tmp_path, Settings(images_per_shard=3)))
    first = tasks[0].task().originals.names[0]
    os.unlink(os.path.join(os.fsencode(source), first))
    with pytest.raises(OSError, match="was listed and is gone"):
        run_tasks(tasks, 2, lambda _: None)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_with_all_its_workers_and_started_again_the_bytes_are_the_same(
    tmp_path: Path, num_workers: int
) -> None:
    source = write_source(tmp_path / "source", train_per_class=60)
    out = tmp_path / "out"
    command = [sys.executable, str(ENTRY_FILE), str(source), "--out", str(out)]
    command += ["--workers", str(num_workers), "--images-per-shard", f"{IMAGES_PER_SHARD}"]
    with subprocess.Popen(command, start_new_session=True) as process:
        while process.poll() is None and len(list(out.glob("*.receipt.json"))) < 3:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    with pytest.raises(ValueError, match="has not finished"):
        open_dataset(out)
    outcome = prepare_here(source, out)
    assert outcome.num_kept >= 3 and outcome.num_made >= 1
    prepare_here(source, tmp_path / "undisturbed")
    assert folder_bytes(out) == folder_bytes(tmp_path / "undisturbed")


@pytest.mark.slow
def test_twenty_interruptions_anywhere_leave_the_bytes_as_they_would_have_been(
    tmp_path: Path,
) -> None:
    source = write_source(tmp_path / "source", train_per_class=400)
    out = tmp_path / "out"
    rng = np.random.default_rng(20)
    command = [sys.executable, str(ENTRY_FILE), str(source), "--out", str(out)]
    command += ["--images-per-shard", "8"]
    unfinished: set[str] = set()  # kinds of files that a kill caught half written
    for interruption in range(20):
        workers = str(1 + interruption % 2)
        num_receipts = len(list(out.glob("*.receipt.json"))) + int(rng.integers(0, 5))
        before = file_times(out)
        with subprocess.Popen(
            [*command, "--workers", workers],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # of killed workers' semaphores
        ) as process:
            while process.poll() is None and (
                len(list(out.glob("*.receipt.json"))) < num_receipts or file_times(out) == before
            ):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            if interruption % 4 < 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # its workers, if any, end by themselves
        assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
        assert not (out / DATASET_NAME).exists()
        unfinished |= {path.name.split(".", 1)[1] for path in out.glob("*.tmp")}
    outcome = prepare_here(source, out, images_per_shard=8)
    print(f"{outcome.num_kept} shards kept, {outcome.num_made} made; unfinished: {unfinished}")
    assert outcome.num_kept > 0 and outcome.num_made > 0 and unfinished
    prepare_here(source, tmp_path / "undisturbed", images_per_shard=8)
    assert folder_bytes(out) == folder_bytes(tmp_path / "undisturbed")


def file_times(folder: Path) -> dict[str, int]:
    """When each file of a folder that others write to was changed last."""
    times = {}
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            times[path.name] = path.stat().st_mtime_ns
    return times


def processes_of_session(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, owner = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(owner) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=60)
    out = tmp_path / "out"
    command = [sys.executable, str(ENTRY_FILE), str(source), "--out", str(out)]
    command += ["--workers", "2", "--images-per-shard", f"{IMAGES_PER_SHARD}"]
    with subprocess.Popen(command, start_new_session=True) as process:
        while process.poll() is None and not list(out.glob("*.receipt.json")):
            time.sleep(0.005)
        process.kill()
    try:
        deadline = time.monotonic() + 10
        while (left := processes_of_session(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left
    finally:
        for pid in processes_of_session(process.pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests run in the background and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("is_blocked", [True, False])
def test_an_interrupt_that_any_thread_takes_waits_for_the_end_of_the_block(
    is_blocked: bool,
) -> None:
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)  # begun before the block: it may take the signal
    other.start()
    done_in_block = 0
    try:
        with pytest.raises(KeyboardInterrupt):
            with interrupts_noted() as interrupts:
                with interrupts_blocked() if is_blocked else contextlib.nullcontext():
                    os.kill(os.getpid(), signal.SIGINT)
                    for done_in_block in range(1, 10_001):  # chances for Python to notice
                        pass
        assert interrupts == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        ended.set()
        other.join()
    assert done_in_block == 10_000


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_noted() as interrupts:
            os.kill(os.getpid(), signal.SIGINT)
        assert not interrupts and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_kills_workers_that_do_not_end(
    image_folder: Path, tmp_path: Path, find_workers: Callable[[], list[BaseProcess]]
) -> None:
    tasks = list(plan(open_source(image_folder), tmp_path, Settings(images_per_shard=3)))
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.3):
            os.kill(os.getpid(), signal.SIGINT)

    impatient = threading.Thread(target=interrupt)

    def stop_workers(done: Tally) -> None:
        for worker in find_workers():
            assert worker.pid
            os.kill(worker.pid, signal.SIGSTOP)  # as if the disk did not answer
        impatient.start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        try:
            run_tasks(tasks, 2, stop_workers)
        finally:
            with interrupts_noted():  # one that comes late
                ended.set()
                impatient.join()
    assert not find_workers()


def test_processes_that_are_started_while_interrupts_are_blocked_never_see_one() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('alive')"
    with interrupts_blocked():
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=60)
    assert output.decode().strip() == "alive" and process.returncode == 0


def test_a_thread_that_is_not_the_main_one_may_note_interrupts_too() -> None:
    noted: list[bool] = []

    def note() -> None:
        with interrupts_noted() as interrupts:
            noted.append(not interrupts)

    thread = threading.Thread(target=note)
    thread.start()
    thread.join()
    assert noted == [True]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("delay_seconds", [0.0, 0.05, 0.2, 0.6, 1.2])  # while workers import
def test_ctrl_c_while_workers_start_shows_one_line(tmp_path: Path, delay_seconds: float) -> None:
    source = write_source(tmp_path / "source", train_per_class=60)
    command = [sys.executable, str(ENTRY_FILE), str(source), "--out", str(tmp_path / "out")]
    command += ["--workers", "4", "--images-per-shard", "2"]
    # Shells start what is to run in the background with SIGINT ignored, which children inherit.
    command = ["env", "--default-signal=INT", *command]
    with subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and len(processes_of_session(process.pid)) < 3:
            time.sleep(0.002)
        time.sleep(delay_seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "interrupted; what was finished is kept, start again to go on\n"
