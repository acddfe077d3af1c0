"""The command that verifies shards: names what is wrong, mends it, ends with the right code."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.conftest import IMAGES_PER_SHARD, cut_file, flip_byte, folder_bytes, write_source
from tools.prepare_shards import main as prepare_shards
from tools.verify_shards import main as verify_shards

ENTRY_FILE = Path(__file__).parents[2] / "tools" / "verify_shards.py"


def run(*arguments: object) -> Result:
    """Runs the command in this process."""
    return CliRunner().invoke(verify_shards, [str(argument) for argument in arguments])


def test_sound_shards_end_with_0_and_the_account(shard_folder: Path) -> None:
    done = run(shard_folder)
    assert done.exit_code == 0, done.output
    assert f"{shard_folder}: 7 shards, 54 images decoded: sound" in done.stdout
    assert "train: class entropy within a shard 1." in done.stdout


def test_run_as_a_file_from_anywhere(shard_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ENTRY_FILE), str(shard_folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "7 shards, 54 images decoded: sound" in done.stdout


def test_the_default_is_the_folder_shards(shard_copy: Path) -> None:
    shard_copy.rename(shard_copy.parent / "shards")
    with contextlib.chdir(shard_copy.parent):
        assert run().exit_code == 0


def test_damage_ends_with_1_and_names_shard_and_mend(shard_copy: Path) -> None:
    flip_byte(shard_copy / "train-000002.tar", 700)
    (shard_copy / "val-000000.tar").unlink()
    done = run(shard_copy, "--sample", 0)
    assert done.exit_code == 1
    assert "damaged: train-000002.tar: SHA-256 is not that of the shard" in done.stdout
    assert "damaged: val-000000.tar: " in done.stdout
    assert "7 shards, 0 images decoded: NOT sound (mend: --repair SOURCE)" in done.stdout


def test_many_problems_of_one_shard_are_not_all_shown(shard_copy: Path) -> None:
    path = shard_copy / "train-000001.tar"
    data = bytearray(path.read_bytes())
    at = [i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"]
    for header in at[::2]:
        data[header + 512 + 30] ^= 0xFF  # within each image
    path.write_bytes(data)
    done = run(shard_copy, "--sample", 0)
    assert done.exit_code == 1
    lines = [line for line in done.stdout.splitlines() if "train-000001.tar" in line]
    assert len(lines) == 5
    assert f"  and {len(at[::2]) + 1 - 5} more of that shard" in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_a_repair_ends_with_0_and_the_same_bytes(
    image_folder: Path, shard_folder: Path, shard_copy: Path, workers: int
) -> None:
    flip_byte(shard_copy / "train-000002.tar", 700)
    cut_file(shard_copy / "train-000003.tar", 1000)
    (shard_copy / "val-000000.receipt.json").unlink()
    done = run(shard_copy, "--repair", image_folder, "--workers", workers)
    assert done.exit_code == 0, done.output
    assert f"repairing 3 shards from {image_folder}" in done.stdout
    assert "sound" in done.stdout.splitlines()[-1]
    assert folder_bytes(shard_copy) == folder_bytes(shard_folder)


def test_a_repair_of_sound_shards_changes_nothing(image_folder: Path, shard_copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shard_copy.iterdir()}
    done = run(shard_copy, "--repair", image_folder)
    assert done.exit_code == 0 and "repairing" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in shard_copy.iterdir()} == before


def test_a_repair_takes_the_same_val_fraction_as_the_preparation(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=6, val_per_class=1) / "train"
    options = ["--out", tmp_path / "out", "--val-fraction", 0.34, "--workers", 1]
    arguments = [str(each) for each in (source, *options, "--images-per-shard", IMAGES_PER_SHARD)]
    prepared = CliRunner().invoke(prepare_shards, arguments)
    assert prepared.exit_code == 0, prepared.output
    before = folder_bytes(tmp_path / "out")
    assert "val-000000.tar" in before
    flip_byte(tmp_path / "out" / "val-000000.tar", 700)
    done = run(tmp_path / "out", "--repair", source, "--workers", 1)
    assert done.exit_code == 0, done.output
    assert folder_bytes(tmp_path / "out") == before


def test_another_source_ends_with_one_message_and_changes_nothing(
    tmp_path: Path, shard_copy: Path
) -> None:
    flip_byte(shard_copy / "train-000002.tar", 700)
    before = folder_bytes(shard_copy)
    done = run(shard_copy, "--repair", write_source(tmp_path / "other"))
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "from other originals" in line
    assert folder_bytes(shard_copy) == before


def test_what_is_no_shard_folder_ends_with_one_message(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.exit_code == 1 and done.stderr.startswith(f"error: {tmp_path} holds no shards")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--sample", "1.5"), ("--sample", "-0.1"), ("--seed", "-1"), ("--workers", "0")],
)
def test_impossible_options_are_usage_errors(
    shard_folder: Path, option: str, value: str
) -> None:
    done = run(shard_folder, option, value)
    assert done.exit_code == 2 and value in done.stderr
