"""A command that cannot go on says one thing and ends with the code that shells expect."""

import io
import os
import sys

import click
import pytest

from pipeline.messages import clear_errors


class OutOfMemoryError(RuntimeError):
    """As torch's is named, which preparation does without."""


INTERRUPTED = "interrupted; what was finished is kept, start again to go on\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("no shards; run this"), 1, "error: no shards; run this\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (
            OutOfMemoryError("CUDA out of memory"), 1,
            "error: CUDA out of memory; ask for fewer images at once: --micro-batch in training, "
            "or --batch-size\n",
        ),
        (KeyboardInterrupt(), 130, INTERRUPTED),
        (KeyboardInterrupt("nothing is kept"), 130, "interrupted; nothing is kept\n"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @clear_errors
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == code
    captured = capsys.readouterr()
    assert captured.err == message and captured.out == ""


def test_our_own_mistakes_are_not_hidden() -> None:
    @clear_errors
    def command() -> None:
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        command()


def test_arguments_name_and_docstring_are_kept() -> None:
    @clear_errors
    def command(number: int, *, word: str) -> None:
        """Says what it does."""
        seen.append((number, word))

    seen: list[tuple[int, str]] = []
    command(3, word="x")
    assert seen == [(3, "x")]
    assert (command.__name__, command.__doc__) == ("command", "Says what it does.")


def test_a_name_that_is_not_utf8_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8", errors="strict"))

    @clear_errors
    def command() -> None:
        click.echo(os.fsdecode(b"shards\xff"))

    command()
    sys.stdout.flush()
    assert written.getvalue() == b"shards\\udcff\n"
