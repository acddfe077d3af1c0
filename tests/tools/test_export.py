"""The export command: what it writes, says and refuses."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tools import export, interchange


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(export.main, [str(word) for word in arguments])


@pytest.mark.parametrize(
    "suffix", [pytest.param("onnx", marks=pytest.mark.slow), "safetensors"]
)
def test_it_writes_the_file_and_says_what_it_takes(
    suffix: str, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"net.{suffix}"
    result = call(run_folder / "last.safetensors", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.output and "(N, 3, 224, 224)" in result.output
    assert out.stat().st_size > 100_000
    told = re.search(r"at most (\S+) of the largest logit, .* tolerated are 0.0001", result.output)
    assert (told is not None) == (suffix == "onnx")
    assert told is None or float(told[1]) <= 1e-4


def test_another_suffix_is_a_usage_error(run_folder: Path, tmp_path: Path) -> None:
    result = call(run_folder / "last.safetensors", "--out", tmp_path / "net.pt")
    assert result.exit_code == 2 and "must end with .onnx or .safetensors" in result.output


def test_a_folder_that_is_not_there_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "it.onnx").mkdir()
    for place, message in (("no/net.onnx", "there is no folder"), ("it.onnx", "is a folder")):
        result = call(tmp_path / "no checkpoint either", "--out", tmp_path / place)
        assert result.exit_code == 1 and "error: --out: " in result.output
        assert message in result.output


def test_the_checkpoint_is_not_written_over(run_folder: Path, tmp_path: Path) -> None:
    """Its momentum and its place in the run would be lost."""
    path, link = tmp_path / "last.safetensors", tmp_path / "net.safetensors"
    path.write_bytes((run_folder / "last.safetensors").read_bytes())
    link.symlink_to(path)
    before = path.read_bytes()
    for out in (path, link):
        result = call(path, "--out", out)
        assert result.exit_code == 2 and "the checkpoint itself" in result.output
        assert path.read_bytes() == before


def test_nothing_is_written_where_the_extra_is_missing(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interchange, "EXTRA", ("there_is_no_such_package",))
    result = call(run_folder / "last.safetensors", "--out", tmp_path / "net.onnx")
    assert result.exit_code == 1 and "pip install 'fullfeed[export]'" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
def test_a_network_that_diverged_is_not_written(
    suffix: str, diverged: Path, tmp_path: Path
) -> None:
    result = call(diverged, "--out", tmp_path / f"net.{suffix}")
    assert result.exit_code == 1 and "fc7.weight holds values that are not" in result.output
    assert list(tmp_path.iterdir()) == []
