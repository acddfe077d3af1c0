"""Files of an object store brought here: tried again, watched, given up with a reason."""

import concurrent.futures
import errno
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.atomic import is_local

NUM_TRIES = 5
FIRST_DELAY_SECONDS = 1.0  # doubles with every further try
STALL_SECONDS = 60.0  # without a byte: the transfer is broken
WATCH_SECONDS = 0.1
CHUNK_BYTES = 4 << 20
# s3fs tells its progress only between rounds of ten 50-MB parts, unless it fetches one by one.
STORE_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1}}


class Stopped(Exception):
    """A transfer was given up because nobody waits for it any more."""


def fetch(
    source: Path,
    target: Path,
    check: Callable[[], None],
    *,
    max_bytes: int | None = None,
    stopped: threading.Event | None = None,
) -> None:
    """Copies `source`, here or on an object store, over the local file `target`, and checks it.

    check: raises OSError where `target` is not what it should be. max_bytes: a transfer that
    brings more is broken. What is broken (cut off, refused, stalled, wrong) is tried NUM_TRIES
    times with growing pauses; then OSError says what happened the last time. FileNotFoundError,
    PermissionError and a full disk are raised at once, Stopped once `stopped` is set.

    A stall, and `stopped`, end what asynchronous fsspec stores transfer (https, s3, gs, az). Of
    others (folders, hdfs, sftp) they are seen between two reads only: one that does not return is
    waited for, for as long as the file system's or the store's own time limits let it.
    """
    stopped = stopped or threading.Event()
    delay_seconds = FIRST_DELAY_SECONDS
    for num_tries in range(1, NUM_TRIES + 1):
        try:
            _copy(source, target, max_bytes, stopped)
            return check()
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source)) from error
        except (Stopped, PermissionError):
            raise
        except Exception as error:  # every store raises exceptions of its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if num_tries == NUM_TRIES:
                what = f"{_said(error)}; tried {NUM_TRIES} times"
                raise OSError(errno.EIO, what, str(source)) from error
        if stopped.wait(delay_seconds):
            raise Stopped
        delay_seconds *= 2
    raise AssertionError


def read_file(path: Path) -> bytes:
    """All of a file, here or on an object store. OSError names it and what is wrong."""
    if is_local(path):
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        fetch(path, target, lambda: None)
        return target.read_bytes()


def _copy(
    source: Path, target: Path, max_bytes: int | None, stopped: threading.Event
) -> None:
    watch = _Watch(max_bytes, stopped)
    store = getattr(source, "fs", None)
    if store is not None and store.async_impl:
        _copy_from_store(store, getattr(source, "path"), target, watch)
        return
    num_bytes = 0
    with source.open("rb") as file, target.open("wb") as copy:
        while chunk := file.read(CHUNK_BYTES):
            num_bytes += len(chunk)
            watch.require_progress(num_bytes)
            copy.write(chunk)


def _copy_from_store(store: Any, path: str, target: Path, watch: "_Watch") -> None:
    """Runs the store's own download in its event loop, and cancels it where it stalls."""
    import asyncio  # a tenth of a worker's start, which has no use for it

    from fsspec.callbacks import Callback

    protocols = [store.protocol] if isinstance(store.protocol, str) else store.protocol
    options = next((STORE_OPTIONS[name] for name in protocols if name in STORE_OPTIONS), {})
    progress = Callback()  # its value: the bytes that came
    download = store._get_file(path, str(target), callback=progress, **options)
    future = asyncio.run_coroutine_threadsafe(download, store.loop)
    try:
        while not concurrent.futures.wait([future], WATCH_SECONDS).done:
            watch.require_progress(progress.value)
        future.result()
    finally:
        future.cancel()


class _Watch:
    """Whether a transfer still gets on."""

    def __init__(self, max_bytes: int | None, stopped: threading.Event) -> None:
        self._max_bytes, self._stopped = max_bytes, stopped
        self._num_bytes, self._moved = 0, time.monotonic()

    def require_progress(self, num_bytes: int) -> None:
        """num_bytes: that came so far. OSError where there are too many or none came for long."""
        if self._stopped.is_set():
            raise Stopped
        if self._max_bytes is not None and num_bytes > self._max_bytes:
            raise OSError(f"more than the {self._max_bytes} bytes expected came")
        now = time.monotonic()
        if num_bytes > self._num_bytes:
            self._num_bytes, self._moved = num_bytes, now
        elif now - self._moved > STALL_SECONDS:
            raise TimeoutError(f"it stalled: no byte for {STALL_SECONDS:g} s")


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
