"""What a progress bar has to know of the terminal that it is drawn on."""

import os
import sys
from typing import Any

COLUMNS, ROWS = 80, 24  # where nobody knows


def bar_options() -> dict[str, Any]:
    """tqdm's options for a bar on stderr as wide as its terminal, also when that is resized.

    A terminal that was given no size (of `script`, or in a container) says it has 0 columns, and
    tqdm would draw nothing: such a one is taken for 80 columns.
    """
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal, or no file
        columns = 0
    return {"dynamic_ncols": True} if columns else {"ncols": COLUMNS - 1, "nrows": ROWS - 1}
