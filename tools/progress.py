"""One progress bar for a whole job; plain lines where the output is no terminal."""

import sys
import time
from types import TracebackType
from typing import Self

from pipeline.terminal import bar_options

LINE_SECONDS = 15.0  # between two plain lines


class Progress:
    """with Progress("prepare", total=1000, unit="image") as progress: progress.show(done)"""

    def __init__(self, name: str, *, total: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._start = self._shown = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # a worker process imports this module and shows nothing

            self._bar = tqdm(
                total=total, desc=name, unit=unit, smoothing=0.1, **bar_options()
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total are done, with `note` behind it."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown < LINE_SECONDS or not done:
            return
        self._shown = now
        rate = done / (now - self._start)
        left = (self._total - done) / rate
        print(
            f"{self._name}: {done:,} of {self._total:,} {self._unit}s, "
            f"{rate:,.0f} {self._unit}s/s, {left:,.0f} s left" + (note and f", {note}"),
            file=sys.stderr,
            flush=True,
        )
