"""What was measured is known to the next run, and whatever is damaged or forbidden is measured."""

from pathlib import Path

import pytest

from pipeline.measured import cache_folder, recall, remember

OF = {"gpu": "H200", "batch": 128}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fullfeed"


def test_it_lies_where_the_user_wants_caches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == folder
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for useless in ("", "relative"):  # as the XDG specification has it
        monkeypatch.setenv("XDG_CACHE_HOME", useless)
        assert cache_folder() == tmp_path / "home/.cache/fullfeed"


def test_what_was_found_is_known_under_the_same_circumstances_alone() -> None:
    assert recall("forms", OF) is None
    remember("forms", OF, {"conv1": "plain"})
    assert recall("forms", dict(reversed(OF.items()))) == {"conv1": "plain"}
    assert recall("decoder", OF) is None
    for other in ({**OF, "batch": 256}, {**OF, "more": 1}, {"gpu": "H200"}):
        assert recall("forms", other) is None
    remember("forms", OF, {"conv1": "unshuffled"})
    assert recall("forms", OF) == {"conv1": "unshuffled"}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"of": {}}'])
def test_a_damaged_finding_is_none_and_is_written_anew(damage: bytes, folder: Path) -> None:
    remember("forms", OF, 1)
    (path,) = folder.iterdir()
    path.write_bytes(damage)
    assert recall("forms", OF) is None
    remember("forms", OF, 2)
    assert recall("forms", OF) == 2 and list(folder.iterdir()) == [path]


def test_where_nothing_can_be_kept_nothing_fails(folder: Path) -> None:
    folder.write_text("in the way")
    remember("forms", OF, 1)
    assert recall("forms", OF) is None
