"""One run at a time in a run folder."""

import fcntl
import time
from pathlib import Path
from typing import IO

LOCK_NAME = "lock"
PATIENCE_SECONDS = 30.0  # for a run whose launcher was killed, and which saves before it ends
POLL_SECONDS = 0.05


class FolderLock:
    """Held by a process, and let go of by the kernel however the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def take(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits for a run that is ending; ValueError where another one goes on in the folder.

        Where the file system knows no locks (some network disks) there is none.
        """
        self._file = open(self._folder / LOCK_NAME, "wb")
        end = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    self.close()
                    raise ValueError(
                        f"another process is training in {self._folder}; stop it, or choose "
                        f"another --out"
                    ) from error
            except OSError:
                return
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Lets go of it."""
        if self._file is not None:
            self._file.close()
            self._file = None
