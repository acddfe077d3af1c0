"""A terminal of any size in the place of stderr, and what was drawn on it."""

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable

import pytest


def on_terminal(
    rows: int, columns: int, draw: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Calls `draw` with stderr on a terminal; the lines that stood there one after the other.

    rows and columns 0: one whose size nobody said.
    """
    other_end, own = pty.openpty()
    fcntl.ioctl(own, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    try:
        with os.fdopen(own, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            draw()
            stream.write("\nend")
            stream.flush()
            seen = b""
            while not seen.endswith(b"end"):
                seen += os.read(other_end, 65536)
    finally:
        os.close(other_end)
    text = seen.decode("utf-8").removesuffix("end")
    return [line.rstrip() for line in text.replace("\n", "\r").split("\r") if line.strip()]
