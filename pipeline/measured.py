"""What was found to be fastest on this machine, kept for the next run: $XDG_CACHE_HOME/fullfeed.

A finding is a file of its own, named after what was measured and all that it depends on. One that
is damaged, or cannot be written, is as good as none: it is measured again.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.atomic import write_whole
from pipeline.receipt import canonical_hash

VERSION = 2  # of all findings; raised when they are measured otherwise


def cache_folder() -> Path:
    """Of this user; ~/.cache/fullfeed unless XDG_CACHE_HOME says otherwise, with a whole path."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "fullfeed"


def recall(what: str, of: Mapping[str, Any]) -> Any | None:
    """What was found for `what` under the same circumstances `of`, JSON-able; None if nothing."""
    try:
        kept = json.loads(_path(what, of).read_bytes())
        return kept["found"] if kept["of"] == {**of, "version": VERSION} else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(what: str, of: Mapping[str, Any], found: Any) -> None:
    """Keeps `found`, JSON-able, for the next run; where it cannot be kept, that one measures."""
    kept = {"what": what, "of": {**of, "version": VERSION}, "found": found}
    path = _path(what, of)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(kept, indent=1) + "\n").encode())


def _path(what: str, of: Mapping[str, Any]) -> Path:
    return cache_folder() / f"{what}-{canonical_hash({**of, 'version': VERSION})[:16]}.json"
