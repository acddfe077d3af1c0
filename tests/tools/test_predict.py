"""The prediction command: what it prints, what it writes, how it ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from tools import predict


def call(*arguments: str | Path) -> Result:
    words = [str(word) for word in (*arguments, "--device", "cpu")]
    return CliRunner().invoke(predict.main, words)


def test_it_names_the_classes_of_every_photograph(
    run_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    photo, path = image_folder / "train/ant/01.jpg", tmp_path / "classes.json"
    checkpoint = run_folder / "last.safetensors"
    result = call(checkpoint, photo, image_folder / "val", "--views", "10", "--json", path)
    assert result.exit_code == 0
    found = json.loads(path.read_text())
    assert found["views"] == 10 and len(found["photographs"]) == 16
    lines = result.output.splitlines()
    assert lines[0] == str(photo) and len(lines) == 16 * 4
    first = found["photographs"][0]
    shown = [f"  {guess['probability']:>7.2%}  {guess['name']}" for guess in first["best"]]
    assert lines[1:4] == shown
    assert {guess["name"] for guess in first["best"]} == {"ant", "bee", "cat"}


def test_what_is_no_photograph_is_named_and_the_exit_code_is_1(
    run_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_text("no photograph")
    shutil.copy(image_folder / "val/ant/00.jpg", tmp_path / "b.jpg")
    result = call(run_folder / "last.safetensors", tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path / 'a.jpg'}: not an image" in result.stderr
    assert "1 of 2 could not be read as photographs" in result.stderr
    assert result.stdout.splitlines()[0] == str(tmp_path / "b.jpg")
    assert len(result.stdout.splitlines()) == 4


def test_a_file_that_is_no_checkpoint_is_one_message(image_folder: Path, tmp_path: Path) -> None:
    result = call(image_folder / "val/ant/00.jpg", image_folder / "val/ant/01.jpg")
    assert result.exit_code == 1 and "no whole safetensors file" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_network_that_diverged_predicts_nothing(diverged: Path, image_folder: Path) -> None:
    result = call(diverged, image_folder / "val" / "ant")
    assert result.exit_code == 1 and "%" not in result.output
    assert "nan.safetensors: fc7.weight holds values that are not finite" in result.output


def test_it_runs_as_a_file_with_the_checkpoint_alone(
    run_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(run_folder / "last.safetensors", tmp_path / "net.safetensors")
    shutil.copy(image_folder / "val/cat/00.jpg", tmp_path / "cat.jpg")
    command = [sys.executable, "-W", "error", predict.__file__, "net.safetensors", "cat.jpg"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("cat.jpg\n")
