"""Shards on an object store: the same files as in a folder, found again by the next start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.locations import location
from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics
from tests.conftest import compute_statistics, folder_bytes, prepare_here

ROOT = Path(__file__).parents[2]


def test_a_path_is_a_path() -> None:
    assert location("some/folder") == Path("some/folder")


def test_an_unknown_kind_of_url_is_refused_with_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"nosuch://x/y cannot be opened .*fullfeed\[s3\]"):
        location("nosuch://x/y")


def test_a_store_gets_the_files_a_folder_gets_and_a_second_start_finds_them(
    image_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[s3])")
    here, there = tmp_path / "shards", location("memory://test-store/shards")
    first = prepare_here(image_folder, here)
    prepare_here(image_folder, there)
    (there / first.dataset.splits["train"].shards[1].name).unlink()  # only that one is made anew
    second = prepare_here(image_folder, there)
    assert second.num_made == 1 and second.num_kept == first.num_made - 1
    compute_statistics(here)
    compute_statistics(there)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == folder_bytes(here)
    fingerprint = open_dataset(there).fingerprint("train")
    assert read_statistics(there, fingerprint).num_pixels > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of boto3
def test_the_commands_write_to_s3_what_they_write_to_a_folder(
    image_folder: Path, tmp_path: Path, s3_server: dict[str, str]
) -> None:
    import boto3  # type: ignore[import-untyped,unused-ignore]

    for out in (str(tmp_path / "shards"), "s3://bucket/some/shards"):
        for words in (
            ("tools/prepare_shards.py", str(image_folder), "--out", out, "--workers", "2"),
            ("tools/compute_pca.py", out),
        ):
            command = [sys.executable, str(ROOT / words[0]), *words[1:]]
            environment = {**os.environ, **s3_server}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stderr
    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket="bucket")["Contents"]
    there = {
        entry["Key"].removeprefix("some/shards/"): client.get_object(
            Bucket="bucket", Key=entry["Key"]
        )["Body"].read()
        for entry in found
    }
    assert there == folder_bytes(tmp_path / "shards")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of boto3
def test_a_bucket_that_is_not_there_is_one_clear_error(
    image_folder: Path, s3_server: dict[str, str]
) -> None:
    command = [sys.executable, str(ROOT / "tools/prepare_shards.py"), str(image_folder)]
    done = subprocess.run(
        [*command, "--out", "s3://no-such-bucket/shards"],
        capture_output=True,
        text=True,
        env={**os.environ, **s3_server},
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert "no-such-bucket" in done.stderr and "Traceback" not in done.stderr
