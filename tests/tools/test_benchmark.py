"""The command: runs from any folder, ends with one JSON line, refuses what means nothing."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from click.testing import CliRunner

import tools.benchmark
from pipeline.shards import index_name
from tools.benchmark import main
from tools.measure.contestants import PEERS

ENTRY = Path(tools.benchmark.__file__).resolve()


def test_the_entry_file_runs_from_another_folder_and_its_last_line_is_the_json_object(
    shard_folder: Path, tmp_path: Path
) -> None:
    assert os.access(ENTRY, os.X_OK)
    options = ["--backend", "numpy", "--threads", "1", "--batch-size", "8", "--images", "16"]
    done = subprocess.run(
        [sys.executable, ENTRY, "loader", "--shards", shard_folder, *options, "--json", "a.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table, last = done.stdout.splitlines()[:-1], done.stdout.splitlines()[-1]
    report = json.loads(last)
    assert set(report) == {
        "results", "ratios", "machine", "settings", "not_measured", "differs",
    }  # fmt: skip
    assert [result["name"] for result in report["results"]] == ["numpy"]
    speed = report["results"][0]["images_per_second"]
    assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert table[1].startswith("numpy")
    assert json.loads((tmp_path / "a.json").read_text()) == report


def test_fewer_than_five_repeats_are_a_usage_error_with_the_reason(shard_folder: Path) -> None:
    done = CliRunner().invoke(main, ["loader", "--shards", str(shard_folder), "--repeats", "4"])
    assert done.exit_code == 2
    assert "repeats must be at least 5, not 4" in done.output


ON_SHARDS = {
    "loader": ("--shards",), "peers": ("--shards",), "recipe": ("--shards",),
    "trainer": ("--shards",), "fed": ("--shards",), "modes": ("--shards",), "preflight": (),
}  # fmt: skip


def refusal(*arguments: str | Path) -> str:
    """The one line that a command ends with, exit code 1, before it has printed anything else."""
    done = CliRunner().invoke(main, [str(each) for each in arguments])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    (line,) = done.output.splitlines()
    assert line.startswith("error: ")
    return line


def without_images(folder: Path, split: str) -> Path:
    """The shard folder as it would be had none of the split's originals been kept."""
    index = folder / index_name(split)
    np.save(index, np.load(index)[:0])
    path = folder / "dataset.json"
    described = json.loads(path.read_text())
    digest = hashlib.sha256(index.read_bytes()).hexdigest()
    described["splits"][split] |= {
        "shards": [], "found": 0, "written": 0, "quarantined": 0, "index_sha256": digest,
    }  # fmt: skip
    path.write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("command", ON_SHARDS)
def test_shards_that_are_missing_or_empty_are_one_line_with_what_to_do(
    command: str, shard_copy: Path, tmp_path: Path
) -> None:
    """No folder, an empty one, a file, a shard that is gone, a split without an image."""
    called = (command, *ON_SHARDS[command])
    absent, bare, file = tmp_path / "absent", tmp_path / "bare", tmp_path / "file"
    bare.mkdir()
    file.touch()
    for folder, wrong in (
        (absent, f"there is no folder {absent}"),
        (bare, f"{bare} holds no shards"),
        (file, f"{file} is a file"),
        (without_images(shard_copy, "train"), f"{shard_copy} has no images in train"),
    ):
        line = refusal(*called, folder)
        assert wrong in line and "tools/prepare_shards.py" in line
    next(shard_copy.glob("val*.tar")).unlink()
    line = refusal(*called, shard_copy)
    assert f"{shard_copy}/val-" in line and f"--out {shard_copy}" in line


@pytest.mark.parametrize("without", ["no images", "no split"])
def test_a_recipe_is_not_trained_where_nothing_could_judge_it(
    without: str, shard_copy: Path
) -> None:
    without_images(shard_copy, "val")
    if without == "no split":
        path = shard_copy / "dataset.json"
        described = json.loads(path.read_text())
        del described["splits"]["val"]
        path.write_text(json.dumps(described))
    for option in ("--torchvision", "--no-torchvision"):
        line = refusal("recipe", "--shards", shard_copy, option)
        assert str(shard_copy) in line and without in line and "prepare a source" in line


def test_photographs_that_are_missing_are_one_line_with_what_to_do(tmp_path: Path) -> None:
    bare, texts, absent = tmp_path / "bare", tmp_path / "texts", tmp_path / "absent"
    for folder in (bare, texts):
        folder.mkdir()
    (texts / "text.jpg").write_text("no photograph")
    for folder, wrong in (
        (absent, f"there is no folder {absent}"),
        (bare, f"{bare} holds no JPEG photograph"),
        (texts, f"{texts} holds no JPEG photograph"),
        (texts / "text.jpg", f"there is no folder {texts}/text.jpg"),
    ):
        line = refusal("prepare", "--images", folder)
        assert wrong in line and "name a folder of photographs" in line


@pytest.mark.parametrize("command", [*ON_SHARDS, "prepare"])
@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_a_place_where_no_file_can_be_is_refused_before_anything_is_measured(
    shard_folder: Path, tmp_path: Path, command: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**options: Any) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    options = ON_SHARDS.get(command, ("--images",))
    for place, told in ((tmp_path / "no folder/a", "mkdir -p"), (tmp_path, "is a folder")):
        line = refusal(command, *options, shard_folder, flag, place)
        assert f"{flag}: " in line and told in line
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    line = refusal(command, *options, shard_folder, flag, tmp_path / "a")
    assert f"{flag}: no file can be made in {tmp_path} (Read-only" in line


SMALL = ("--batch-size", "8", "--backend", "numpy")
STEP = (*SMALL, "--width", "0.03125", "--device", "cpu", "--seconds", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "seen"),
    [
        (["loader", *SMALL, "--threads", "1", "--against", "torch"], "repeated to"),  # it opens
        (["loader", *SMALL, "--threads", "1", "--against", "torch"], "warm-up: torch"),
        (["fed", *STEP], "warm-up"),
        (["fed", *STEP, "--processes", "2"], "warm-up"),
        (["modes", *STEP], "warm-up"),
    ],
)
def test_ctrl_c_ends_every_process_with_one_line_and_leaves_nothing(
    command: list[str], seen: str, shard_folder: Path, tmp_path: Path
) -> None:
    """As a terminal sends it: to the command and to all that it has started, at once."""
    place = tmp_path / "a.json"
    # Shells start what is to run in the background with SIGINT ignored, which children inherit.
    whole = ["env", "--default-signal=INT", sys.executable, str(ENTRY), *command]
    whole += ["--shards", str(shard_folder), "--json", str(place)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        whole, start_new_session=True, stdout=pipe, stderr=pipe, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stdout is not None
        while (line := process.stderr.readline()) and seen not in line:
            pass
        os.killpg(process.pid, signal.SIGINT)
        lines = process.stderr.read().splitlines()  # until the last process has closed it
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert [line for line in lines if " images/s, " not in line] == [
        "interrupted; nothing was measured to the end, and nothing is kept"
    ]
    left = {path.name for path in tmp_path.iterdir()}
    assert {name for name in left if not name.startswith("torchinductor")} == set()


def test_an_unknown_peer_is_a_usage_error_that_names_those_there_are(shard_folder: Path) -> None:
    done = CliRunner().invoke(main, ["loader", "--shards", str(shard_folder), "--against", "x"])
    assert done.exit_code == 2
    assert ", ".join(f"'{name}'" for name in PEERS) in done.output
