"""What a command says when it cannot go on: one line, and an exit code."""

import functools
import io
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import click

P = ParamSpec("P")
INTERRUPTED = 130  # the exit code that shells expect after Ctrl-C
KEPT = "what was finished is kept, start again to go on"


def explain(error: Exception) -> str:
    """What an error says to a person: the file system's own errors as "path: what is wrong"."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _explain_foreign(error: Exception) -> str | None:
    """The same of libraries that are not imported here; None for a mistake of this program."""
    if type(error).__module__.startswith("botocore"):  # no login, no network
        return f"the object store: {error}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return f"{error}; ask for fewer images at once: --micro-batch in training, or --batch-size"
    return None


def clear_errors(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose ValueError and OSError end it with one message and exit code 1.

    Names that are not UTF-8 are printed with backslashes, as on stderr, and end nothing.

    Anything else is a mistake of this program and shows its traceback. Usage errors are click's,
    with exit code 2; Ctrl-C ends with INTERRUPTED, and KEPT or what KeyboardInterrupt itself says.
    """

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            command(*args, **kwargs)
        except (ValueError, OSError) as error:
            click.echo(f"error: {explain(error)}", err=True)
            sys.exit(1)
        except Exception as error:
            if (foreign := _explain_foreign(error)) is None:
                raise
            click.echo(f"error: {foreign}", err=True)
            sys.exit(1)
        except KeyboardInterrupt as interrupt:
            click.echo(f"interrupted; {str(interrupt) or KEPT}", err=True)
            sys.exit(INTERRUPTED)

    return guarded
