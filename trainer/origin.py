"""The checkpoint that a run begins with (--init-from): needed until the run has one of its own."""

import hashlib
import json
from pathlib import Path

from pipeline.atomic import write_whole
from trainer.checkpoint_writer import LAST_NAME
from trainer.config import RunConfig

NOTE_NAME = "init_from.json"


def needs_origin(config: RunConfig) -> bool:
    """Whether the run begins with the weights of another; one that is resumed has its own."""
    return config.init_from is not None and not (config.folder / LAST_NAME).exists()


def origin_digest(config: RunConfig) -> str | None:
    """SHA-256 of the checkpoint that --init-from names; None where it names none.

    A run that is resumed with the name it began with takes the digest noted then: the file may
    have changed since, or be gone. ValueError where another name cannot be read.
    """
    path, folder = config.init_from, config.folder
    if path is None:
        return None
    noted = {} if needs_origin(config) else _read_note(folder)
    if noted.get("path") == str(path.absolute()):
        return noted["sha256"]
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        began = f"; the run in {folder} began with {noted['path']}: give that" if noted else ""
        raise ValueError(f"--init-from {path} cannot be read: {error.strerror}{began}") from error


def note_origin(folder: Path, path: Path, digest: str) -> None:
    """Notes in the run folder what `origin_digest` gave; OSError as the file system raises it."""
    note = {"path": str(path.absolute()), "sha256": digest}
    write_whole(folder / NOTE_NAME, json.dumps(note).encode() + b"\n")


def _read_note(folder: Path) -> dict[str, str]:
    """What `note_origin` wrote; empty where there is nothing of that kind."""
    try:
        note = json.loads((folder / NOTE_NAME).read_bytes())
        return {"path": note["path"], "sha256": note["sha256"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
