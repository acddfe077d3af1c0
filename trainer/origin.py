"""The checkpoint that a run begins with (--init-from): needed until the run has one of its own."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.atomic import write_whole
from trainer.checkpoint_writer import LAST_NAME
from trainer.config import RunConfig
from trainer.description import CONFIG_NAME

NOTE_NAME = "init_from.json"  # where it lay, as the first rank called it


def needs_origin(config: RunConfig) -> bool:
    """Whether the run begins with the weights of another; one that is resumed has its own."""
    return config.init_from is not None and not (config.folder / LAST_NAME).exists()


def origin_digest(config: RunConfig, *, is_first: bool = True) -> str | None:
    """SHA-256 of the checkpoint that --init-from names; None where it names none.

    A run that is resumed takes the digest it began with: the file may have changed since, or be
    gone. Only where the first rank is given another name that can be read, it is that file's, to
    be refused if it is another; each machine may have a name of its own. ValueError where a run
    that begins cannot read the file.
    """
    path, folder = config.init_from, config.folder
    if path is None:
        return None
    began = None if needs_origin(config) else _digest_of_begin(folder)
    noted = _read(folder / NOTE_NAME).get("path")
    if began is not None and (not is_first or noted == str(path.absolute())):
        return began
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        told = f"--init-from {path} cannot be read: {error.strerror}"
        if began is None:
            raise ValueError(told) from error
    noted_name = f" (it began with {noted})" if isinstance(noted, str) else ""
    print(
        f"warning: {told}; the run goes on without, from its own checkpoint{noted_name}",
        file=sys.stderr,
    )
    return began


def note_origin(folder: Path, path: Path) -> None:
    """Notes in the run folder where the checkpoint lies; not of one that is gone.

    OSError as the file system raises it.
    """
    if path.exists():
        note = json.dumps({"path": str(path.absolute())})
        write_whole(folder / NOTE_NAME, note.encode() + b"\n")


def _digest_of_begin(folder: Path) -> str | None:
    """What the run's configuration says; None where it says nothing of that kind."""
    origin = _read(folder / CONFIG_NAME).get("init_from")
    digest = origin.get("sha256") if isinstance(origin, dict) else None
    return digest if isinstance(digest, str) else None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
