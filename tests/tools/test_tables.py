"""The command that makes tables: it writes them, or says that a page differs and exits with 1."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools import tables

PAGE = "a\n<!-- table: results/r.json stages -->\n{}\n<!-- end of table -->\nb\n"
TABLE = "| read | decode |\n| --- | --: |\n| 25% | 75% |"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two pages, the first of which is not up to date."""
    for folder in ("results", "shards"):
        (tmp_path / folder).mkdir()
    measured = json.dumps({"stages": {"read": 0.25, "decode": 0.75}})
    (tmp_path / "results/r.json").write_text(measured)
    (tmp_path / "README.md").write_text(PAGE.format("old"))
    (tmp_path / "shards/README.md").write_text(PAGE.format(TABLE))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGES", ("README.md", "shards/README.md"))
    return tmp_path


def test_a_page_that_differs_is_told_with_exit_code_1_and_stays(root: Path) -> None:
    done = CliRunner().invoke(tables.main, ["--check"])
    assert done.exit_code == 1
    assert done.output == "README.md: tables differ from results/; run make tables\n"
    assert (root / "README.md").read_text() == PAGE.format("old")


def test_tables_are_written_and_pass_the_check_from_then_on(root: Path) -> None:
    done = CliRunner().invoke(tables.main)
    assert (done.exit_code, done.output) == (0, "tables written: README.md\n")
    assert (root / "README.md").read_text() == PAGE.format(TABLE)
    for arguments in ([], ["--check"]):
        done = CliRunner().invoke(tables.main, arguments)
        assert (done.exit_code, done.output) == (0, "every table is up to date\n")


def test_numbers_whose_measurement_is_gone_fail_the_check(root: Path) -> None:
    assert CliRunner().invoke(tables.main).exit_code == 0
    (root / "results/r.json").unlink()
    done = CliRunner().invoke(tables.main, ["--check"])
    assert done.exit_code == 1
    assert done.output.startswith("README.md, shards/README.md: tables differ from results/")
