"""Shards on an object store: the same files as in a folder, found again by the next start."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.atomic import create_once, is_local
from pipeline.engines import run_tasks
from pipeline.images import ImageFormat
from pipeline.locations import location
from pipeline.manifest import CLAIM_NAME, DATASET_NAME, open_dataset
from pipeline.moments import read_statistics
from pipeline.plan import PlannedShard, Settings
from pipeline.prepare import Engine, prepare
from pipeline.repair import repair
from pipeline.shard_maker import Stages
from pipeline.sources import open_source
from pipeline.verify import Findings, verify_dataset
from tests.conftest import (
    IMAGES_PER_SHARD,
    compute_statistics,
    folder_bytes,
    prepare_here,
    write_source,
)

ROOT = Path(__file__).parents[2]
QUIET: dict[str, Any] = {
    "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True,
}  # fmt: skip


def test_a_path_is_a_path() -> None:
    assert location("some/folder") == Path("some/folder")


def test_a_url_of_this_machine_is_a_path_too() -> None:
    for scheme in ("file", "local"):
        found = location(f"{scheme}:///scratch/shards")
        assert found == Path("/scratch/shards") and is_local(found)


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
def test_killed_while_it_writes_to_s3_the_command_goes_on_with_the_same_bytes(
    tmp_path: Path, s3_server: dict[str, str]
) -> None:
    import boto3

    source = write_source(tmp_path / "source", train_per_class=60)
    prepare_here(source, tmp_path / "here")
    client = boto3.client("s3")

    def there() -> dict[str, str]:
        listed = client.list_objects_v2(Bucket="bucket").get("Contents", [])
        return {entry["Key"].removeprefix("shards/"): entry["ETag"] for entry in listed}

    command = [sys.executable, str(ROOT / "tools/prepare_shards.py"), str(source)]
    command += ["--out", "s3://bucket/shards", "--images-per-shard", f"{IMAGES_PER_SHARD}"]
    command += ["--workers", "2"]
    environment = {**os.environ, **s3_server}
    for num_receipts in (2, 6):  # two kills, in different places
        with subprocess.Popen(command, env=environment, **QUIET) as process:
            while process.poll() is None and num_receipts > sum("receipt" in n for n in there()):
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
        assert DATASET_NAME not in there()
    before = there()
    finished = {n.partition(".")[0] for n in before if n.endswith(".receipt.json")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(finished)} found finished" in done.stdout
    bodies = {
        name: client.get_object(Bucket="bucket", Key=f"shards/{name}")["Body"].read()
        for name in there()
    }
    assert bodies == folder_bytes(tmp_path / "here")


def test_damage_on_a_store_is_found_and_mended(image_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[s3])")
    there = location("memory://test-damage/shards")
    dataset = prepare_here(image_folder, there).dataset
    before = {path.name: path.read_bytes() for path in there.iterdir()}

    def verified() -> Findings:
        return verify_dataset(dataset, sample=1, seed=0, report=lambda _: None)

    assert verified().sound and verified().num_decoded == 54
    data = bytearray(before["train-000002.tar"])
    data[700] ^= 0xFF
    (there / "train-000002.tar").write_bytes(bytes(data))
    (there / "val-000000.tar").unlink()
    damaged = verified().damaged
    assert set(damaged) == {("train", 2), ("val", 0)}
    engine: Engine = lambda shards: run_tasks(shards, 1, lambda _: None)  # noqa: E731
    repair(open_source(image_folder), dataset, list(damaged), engine)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of boto3
def test_shards_on_s3_are_verified_and_repaired_by_the_command(
    image_folder: Path, s3_server: dict[str, str]
) -> None:
    import boto3

    url = "s3://bucket/shards"

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / words[0]), *words[1:]]
        environment = {**os.environ, **s3_server}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    prepared = run("tools/prepare_shards.py", str(image_folder), "--out", url, "--workers", "1")
    assert prepared.returncode == 0, prepared.stderr
    sound = run("tools/verify_shards.py", url)
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert "2 shards, 54 images decoded: sound" in sound.stdout
    client = boto3.client("s3")
    key = "shards/train-000000.tar"
    whole = client.get_object(Bucket="bucket", Key=key)["Body"].read()
    assert "preparing.json" not in str(client.list_objects_v2(Bucket="bucket")["Contents"])
    client.put_object(Bucket="bucket", Key=key, Body=whole[:-3000])
    damaged = run("tools/verify_shards.py", url)
    assert damaged.returncode == 1 and "damaged: train-000000.tar" in damaged.stdout
    mended = run("tools/verify_shards.py", url, "--repair", str(image_folder), "--workers", "1")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == whole
    nowhere = run("tools/verify_shards.py", "s3://bucket/nowhere")
    assert nowhere.returncode == 1 and nowhere.stderr.startswith("error: ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of boto3
def test_s3_lets_one_of_two_creators_win(s3_server: dict[str, str]) -> None:
    del s3_server
    path = location("s3://bucket/file")
    assert create_once(path, b"one") == b"one"
    assert create_once(path, b"two") == b"one"


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


def test_whichever_upload_fails_no_receipt_stands_for_a_shard_that_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[s3])")
    source = write_source(tmp_path / "source", train_per_class=2, val_per_class=1)
    prepare_here(source, tmp_path / "here", images_per_shard=3)
    expected = folder_bytes(tmp_path / "here")
    store = type(getattr(location("memory://test-uploads"), "fs"))
    put_file = store.put_file
    for fails in range(len(expected)):
        there = location(f"memory://test-uploads/{fails}")
        numbers = itertools.count()

        def put(fs: Any, *arguments: str) -> None:
            if next(numbers) == fails:  # noqa: B023  # called in this turn only
                raise OSError("the network is gone")
            put_file(fs, *arguments)

        monkeypatch.setattr(store, "put_file", put)
        with pytest.raises(OSError, match="cannot be written: the network is gone"):
            prepare_here(source, there, images_per_shard=3)
        left = {path.name: path.read_bytes() for path in there.iterdir()}
        assert DATASET_NAME not in left
        for receipt in (name for name in left if name.endswith(".receipt.json")):
            stem = receipt.removesuffix("receipt.json")
            for name in (f"{stem}tar", f"{stem}idx", f"{stem}sums.npz", receipt):
                assert left.get(name) == expected[name]
        prepare_here(source, there, images_per_shard=3)
        assert {path.name: path.read_bytes() for path in there.iterdir()} == expected


def test_two_writers_of_a_store_that_make_the_same_do_no_harm(
    image_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[s3])")
    there = location("memory://test-two-writers/shards")

    def engine(shards: list[PlannedShard]) -> Stages:
        assert (there / CLAIM_NAME).exists()
        prepare_here(image_folder, there)  # the second writer begins and ends in the first's midst
        return run_tasks(shards, 1, lambda _: None)

    prepare(open_source(image_folder), there, Settings(images_per_shard=IMAGES_PER_SHARD), engine)
    prepare_here(image_folder, tmp_path / "here")
    assert {path.name: path.read_bytes() for path in there.iterdir()} == folder_bytes(
        tmp_path / "here"
    )


def test_a_second_writer_of_a_store_that_makes_something_else_is_refused(
    image_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[s3])")
    there = location("memory://test-other-writer/shards")
    other = write_source(tmp_path / "other", train_per_class=2)

    def engine(shards: list[PlannedShard]) -> Stages:
        with pytest.raises(ValueError, match=r"is being prepared with other settings .*--fresh"):
            prepare_here(image_folder, there, image_format=ImageFormat(quality=50))
        with pytest.raises(ValueError, match=r"is being prepared .* from other originals"):
            prepare_here(other, there)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(
            open_source(image_folder), there, Settings(images_per_shard=IMAGES_PER_SHARD), engine
        )
    assert prepare_here(image_folder, there).num_made == 7  # the claim of a killed one: no matter
    assert not (there / CLAIM_NAME).exists()
