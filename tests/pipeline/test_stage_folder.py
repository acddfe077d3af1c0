"""A stage folder holds what is in use and no more than its bound, whoever dies meanwhile."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.manifest import Shard
from pipeline.open_shards import OpenShard
from pipeline.stage_folder import FREE_SHARE, Download, Elsewhere, NoRoom, StageFolder


def shard(number: int, num_bytes: int = 100) -> Shard:
    name = f"train-{number:06d}.tar"
    return Shard(name=name, samples=1, bytes=num_bytes, sha256=f"{number:064x}"[::-1])


def bring(folder: StageFolder, wanted: Shard) -> OpenShard:
    """Claims a shard that is not there, and fills it."""
    download = folder.claim(wanted)
    assert isinstance(download, Download)
    download.path.write_bytes(bytes(wanted.bytes))
    return folder.finish(download)


def claimed(folder: StageFolder, wanted: Shard) -> OpenShard:
    found = folder.claim(wanted)
    assert isinstance(found, OpenShard)
    return found


def staged(path: Path) -> set[int]:
    """The numbers of the shards that lie there, whole or in part."""
    return {int(file.name.split("-")[2][:6]) for file in path.iterdir() if "-train-" in file.name}


def num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def test_one_claims_the_others_wait_and_then_find_it(tmp_path: Path) -> None:
    one, other = StageFolder(tmp_path, 250), StageFolder(tmp_path, 250)
    download = one.claim(shard(0))
    assert isinstance(download, Download)
    elsewhere = other.claim(shard(0))
    assert isinstance(elsewhere, Elsewhere) and elsewhere == one.claim(shard(0))
    assert (elsewhere.path, elsewhere.num_bytes) == (download.path, 0)
    download.path.write_bytes(bytes(100))
    mine, others = one.finish(download), claimed(other, shard(0))
    assert mine.path == others.path and os.pread(others.descriptor, 200, 0) == bytes(100)
    assert str(mine.path) in mine.mend


def test_given_up_it_is_anybodys_again(tmp_path: Path) -> None:
    one, other = StageFolder(tmp_path, 250), StageFolder(tmp_path, 250)
    download = one.claim(shard(0))
    assert isinstance(download, Download)
    one.abandon(download)
    assert staged(tmp_path) == set()
    assert isinstance(other.claim(shard(0)), Download)


def test_what_is_on_its_way_counts_in_full_from_the_beginning(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path, 250)
    downloads = [folder.claim(shard(number)) for number in range(2)]
    assert num_bytes(tmp_path) == 0
    with pytest.raises(NoRoom, match="200 bytes of the 250 bytes of .* are in use"):
        folder.claim(shard(2))
    for download in downloads:
        assert isinstance(download, Download)
        folder.abandon(download)


def test_the_least_recently_claimed_goes_first_and_nothing_in_use(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path, 400)
    held = {number: bring(folder, shard(number)) for number in range(4)}
    with pytest.raises(NoRoom):
        folder.claim(shard(9))
    assert staged(tmp_path) == {0, 1, 2, 3}
    del held[1], held[2], held[3]
    gc.collect()
    again = claimed(folder, shard(1))  # used once more: 2 is now the oldest that is free
    del again
    for number, left in ((4, {0, 1, 3, 4}), (5, {0, 1, 4, 5}), (6, {0, 4, 5, 6})):
        held[number] = bring(folder, shard(number))
        assert staged(tmp_path) == left
    with pytest.raises(NoRoom):
        folder.claim(shard(7))


def test_another_process_keeps_what_it_uses_until_it_is_killed(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path, 200)
    for number in range(2):
        bring(folder, shard(number))
    program = (
        "import sys; from pathlib import Path; from tests.pipeline.test_stage_folder import *\n"
        "folder = StageFolder(Path(sys.argv[1]), 200)\n"
        "held = claimed(folder, shard(0)), folder.claim(shard(2))\n"
        "held[1].path.write_bytes(bytes(50)); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline()
        assert staged(tmp_path) == {0, 2}
        with pytest.raises(NoRoom):
            folder.claim(shard(3))
        assert isinstance(folder.claim(shard(2)), Elsewhere)
        process.send_signal(signal.SIGKILL)
        process.wait()
    held = bring(folder, shard(2))  # the dead one's partial file made way
    assert held and staged(tmp_path) == {0, 2} and num_bytes(tmp_path) == 200
    bring(folder, shard(3))
    assert staged(tmp_path) == {2, 3}


def test_what_dead_processes_left_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    left = tmp_path / f"{shard(5).sha256[:16]}-train-000005.tar.100.part"
    left.write_bytes(bytes(100))
    for name in ("notes.txt", "train-000000.tar", "other.part"):
        (tmp_path / name).write_bytes(bytes(500))
    folder = StageFolder(tmp_path, 100)
    assert not left.exists()
    bring(folder, shard(0))
    bring(folder, shard(1))
    assert staged(tmp_path) == {1}
    assert len(list(tmp_path.iterdir())) == 5  # stage.lock too


def test_a_staged_file_of_another_size_is_brought_anew(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path, 200)
    path = bring(folder, shard(0)).path
    path.write_bytes(bytes(99))
    assert bring(folder, shard(0)).path.stat().st_size == 100


def test_without_a_bound_it_is_nine_tenths_of_what_is_free(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert StageFolder(tmp_path / "stage").max_bytes == pytest.approx(FREE_SHARE * free, rel=0.05)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="--stage-dir .*file/stage cannot be used: Not a dir"):
        StageFolder(tmp_path / "file" / "stage", 100)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_done_the_bound_holds_and_what_is_held_is_there(
    tmp_path: Path, seed: int
) -> None:
    """Random claims, ends and releases by three users, against what must then be true."""
    rng = np.random.default_rng(seed)
    users = [StageFolder(tmp_path, 1000) for _ in range(3)]
    held: list[OpenShard] = []
    downloads: list[tuple[StageFolder, Download, int]] = []
    num_full = 0
    for _ in range(300):
        action = rng.integers(4)
        if action == 0 and held:
            held.pop(int(rng.integers(len(held))))
        elif action == 1 and downloads:
            user, download, size = downloads.pop(int(rng.integers(len(downloads))))
            download.path.write_bytes(bytes(size))
            if rng.random() < 0.3:
                user.abandon(download)
            else:
                held.append(user.finish(download))
        else:
            user, number = users[int(rng.integers(3))], int(rng.integers(12))
            size = 100 + 20 * number
            try:
                found = user.claim(shard(number, size))
            except NoRoom:
                num_full += 1
                continue
            if isinstance(found, OpenShard):
                held.append(found)
            elif isinstance(found, Download):
                downloads.append((user, found, size))
        reserved = sum(size for _, download, size in downloads)
        finished = sum(file.stat().st_size for file in tmp_path.glob("*.tar"))
        assert reserved + finished <= 1000
        assert all(os.path.samestat(os.fstat(s.descriptor), s.path.stat()) for s in held)
        assert all(download.path.exists() for _, download, _ in downloads)
    assert num_full > 10
    for user, download, _ in downloads:
        user.abandon(download)
