"""The command that computes the PCA: both ways bit-equal, what it prints is what it writes."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline.manifest import open_dataset
from pipeline.moments import MEAN_NAME, PCA_NAME, read_statistics
from tests.conftest import cut_file, flip_byte
from tools.compute_pca import main as compute_pca

ENTRY_FILE = Path(__file__).parents[2] / "tools" / "compute_pca.py"


def run(folder: Path, *arguments: object) -> Result:
    """Runs the command in `folder`, in this process."""
    with contextlib.chdir(folder):
        return CliRunner().invoke(compute_pca, [str(argument) for argument in arguments])


def run_file(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Runs the entry file in `folder`, as a user does."""
    command = [sys.executable, str(ENTRY_FILE), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("options", [[], ["--recompute"]], ids=["merged", "recomputed"])
def test_merged_and_recomputed_files_are_bit_equal(
    shard_folder: Path, shard_copy: Path, tmp_path: Path, options: list[str]
) -> None:
    for name in (PCA_NAME, MEAN_NAME):
        (shard_copy / name).unlink()
    done = run_file(tmp_path, shard_copy, *options)
    assert done.returncode == 0, done.stderr
    for name in (PCA_NAME, MEAN_NAME):
        assert (shard_copy / name).read_bytes() == (shard_folder / name).read_bytes()


def test_it_prints_eigenvalues_their_roots_and_one_sigma_of_lighting(
    shard_copy: Path, tmp_path: Path
) -> None:
    done = run(tmp_path, shard_copy)
    found = read_statistics(shard_copy, open_dataset(shard_copy).fingerprint("train"))
    lines = done.stdout.splitlines()

    def numbers(start: str) -> list[float]:
        (line,) = (line for line in lines if line.startswith(start))
        values = re.findall(r"-?\d+\.\d+", line.removeprefix(start).partition("(ImageNet")[0])
        return [float(value) for value in values]

    roots = np.sqrt(found.eigenvalues)
    np.testing.assert_allclose(numbers("eigenvalues"), found.eigenvalues, atol=0.006)
    np.testing.assert_allclose(numbers("square roots"), roots, atol=0.006)
    for axis in range(3):
        *colour, length = numbers(f"one sigma of lighting along component {axis + 1} adds")
        expected = 0.1 * roots[axis] * found.eigenvectors[:, axis]
        np.testing.assert_allclose(colour, expected, atol=0.006)
        np.testing.assert_allclose(length, np.linalg.norm(expected), atol=0.006)
    assert lines[-1] == f"next: trainer/run.py --shards {shard_copy}"


def test_pca_json_holds_what_the_contract_lists(shard_folder: Path) -> None:
    text = json.loads((shard_folder / PCA_NAME).read_text())
    assert text.keys() == {
        "eigenvalues", "eigenvectors", "covariance", "mean", "num_pixels", "fingerprint",
    }  # fmt: skip
    assert text["num_pixels"] == 39 * 256 * 256
    assert text["fingerprint"] == open_dataset(shard_folder).fingerprint("train")
    mean_image = np.load(shard_folder / MEAN_NAME)
    assert mean_image.dtype == np.float32 and mean_image.shape == (256, 256, 3)
    np.testing.assert_allclose(mean_image.mean((0, 1), np.float64), text["mean"], rtol=1e-6)


def test_without_an_argument_it_takes_the_folder_shards(shard_copy: Path, tmp_path: Path) -> None:
    shard_copy.rename(tmp_path / "shards")
    (tmp_path / "shards" / PCA_NAME).unlink()
    assert run(tmp_path).exit_code == 0
    assert (tmp_path / "shards" / PCA_NAME).exists()


def test_damage_ends_with_one_message_and_the_next_command(
    shard_copy: Path, tmp_path: Path
) -> None:
    flip_byte(shard_copy / "train-000000.sums.npz", 100_000)
    done = run(tmp_path, shard_copy)
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert f"run: tools/compute_pca.py {shard_copy} --recompute" in done.stderr
    assert run(tmp_path, shard_copy, "--recompute").exit_code == 0
    cut_file(shard_copy / "train-000002.tar", 512)
    done = run(tmp_path, shard_copy)
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert "train-000002.tar" in done.stderr and "prepare again" in done.stderr


def test_a_folder_without_shards_ends_with_the_next_command(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "none"):
        done = run(tmp_path, name)
        assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
        assert "tools/prepare_shards.py SOURCE --out" in done.stderr


def test_help_and_unknown_flags(tmp_path: Path) -> None:
    assert "--recompute" in run(tmp_path, "--help").stdout
    assert run(tmp_path, "--colour").exit_code == 2
