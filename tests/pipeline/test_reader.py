"""The bytes delivered are those written, or the shard and the sample that differ are named."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.open_shards
from pipeline.images import RAW_HEADER
from pipeline.manifest import open_dataset
from pipeline.open_shards import LocalShards
from pipeline.order import Rows, order
from pipeline.reader import Reader, StepBytes
from tests.conftest import cut_file, flip_byte


def reader_of(folder: Path, **options: Any) -> Reader:
    dataset = open_dataset(folder)
    header = RAW_HEADER if dataset.encoding == "raw" else b""
    chosen: dict[str, Any] = {"max_rows": 16, "depth": 2, "num_threads": 3, **options}
    shards = LocalShards([folder / shard.name for shard in dataset.split("train").shards])
    return Reader(shards, dataset.index("train"), header=header, **chosen)


def written(folder: Path, rows: Rows) -> list[bytes]:
    """The images of index rows, cut out of the tars."""
    chosen = open_dataset(folder).index("train")[rows]
    tars = {n: (folder / f"train-{n:06d}.tar").read_bytes() for n in set(chosen["shard"].tolist())}
    return [tars[row["shard"]][row["offset"] :][: row["size"]] for row in chosen]


def delivered(step: StepBytes) -> list[bytes]:
    images = zip(step.data, step.sizes[:, 0], strict=True)
    return [data[:size].tobytes() for data, size in images]


def rows_of(folder: Path) -> Rows:
    sizes = [shard.samples for shard in open_dataset(folder).split("train").shards]
    return order(sizes, seed=0, epoch=0)


def shard_of_rows(shard_folder: Path) -> Rows:
    """The shard of every index row, from the index file itself."""
    shards: Rows = np.load(shard_folder / "train.index.npy")["shard"].astype(np.int64)
    return shards


@pytest.mark.parametrize("num_threads", [1, 3, 40])
def test_images_arrive_in_the_order_asked_for(shard_folder: Path, num_threads: int) -> None:
    reader, rows = reader_of(shard_folder, num_threads=num_threads), rows_of(shard_folder)
    for chosen in (rows[:16], rows[16:17], rows[17:30]):
        reader.request(chosen)
        assert delivered(reader.take()) == written(shard_folder, chosen)
        reader.release()
    reader.close()


def test_raw_images_arrive_without_their_header(raw_shard_folder: Path) -> None:
    reader, rows = reader_of(raw_shard_folder), rows_of(raw_shard_folder)[:9]
    reader.request(rows)
    step = reader.take()
    assert step.data.shape == (9, 256 * 256 * 3) and step.data.flags.c_contiguous
    found = [RAW_HEADER + image for image in delivered(step)]
    assert found == written(raw_shard_folder, rows)
    reader.close()


def test_a_buffer_is_reused_only_after_its_release(shard_folder: Path) -> None:
    reader, rows = reader_of(shard_folder), rows_of(shard_folder)
    rooms = [reader.has_room]
    reader.request(rows[:8])
    rooms.append(reader.has_room)
    reader.request(rows[8:16])
    rooms.append(reader.has_room)
    first, second = reader.take(), reader.take()
    rooms.append(reader.has_room)
    kept = delivered(second)
    reader.release()
    rooms.append(reader.has_room)
    assert rooms == [True, True, False, False, True]
    reader.request(rows[16:24])
    third = reader.take()
    assert np.shares_memory(third.data, first.data)
    assert delivered(second) == kept
    assert delivered(third) == written(shard_folder, rows[16:24])
    reader.close()


def test_a_buffer_still_read_by_others_is_written_to_only_when_they_have_read_it(
    shard_folder: Path,
) -> None:
    reader, rows = reader_of(shard_folder, depth=1), rows_of(shard_folder)
    reader.request(rows[:8])
    step = reader.take()
    kept, read = step.data.copy(), threading.Event()
    reader.release(read.wait)
    reader.request(rows[8:16])  # does not wait: its threads do
    read.wait(0.1)
    early = reader.is_ready or not np.array_equal(step.data, kept)
    read.set()
    assert not early
    assert delivered(reader.take()) == written(shard_folder, rows[8:16])
    reader.release()  # nobody reads it any more
    reader.request(rows[16:24])
    assert delivered(reader.take()) == written(shard_folder, rows[16:24])
    reader.close()


def test_buffers_are_those_it_is_given(shard_folder: Path) -> None:
    given = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> Any:
        given.append(np.empty(shape, dtype))
        return given[-1]

    reader = reader_of(shard_folder, depth=3, allocate=allocate)
    reader.request(rows_of(shard_folder)[:8])
    assert np.shares_memory(reader.take().data, given[0]) and len(given) == 3
    reader.close()


def test_it_is_ready_once_the_bytes_are_there(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, preadv = threading.Event(), os.preadv

    def wait_then_read(*arguments: Any) -> int:
        assert go.wait(30)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", wait_then_read)
    reader = reader_of(shard_folder)
    assert not reader.is_ready  # nothing was asked for
    reader.request(rows_of(shard_folder)[:8])
    assert not reader.is_ready
    go.set()
    reader.take()
    assert not reader.is_ready
    reader.close()


def test_clear_forgets_and_the_next_request_is_unharmed(shard_folder: Path) -> None:
    reader, rows = reader_of(shard_folder), rows_of(shard_folder)
    for start in range(0, 24, 2):
        reader.request(rows[start : start + 8])
        reader.request(rows[start + 8 : start + 16])
        if start % 4:
            reader.take()
        reader.clear()
        assert reader.has_room and not reader.is_ready
    reader.request(rows[3:11])
    assert delivered(reader.take()) == written(shard_folder, rows[3:11])
    reader.close()


def test_more_shards_than_may_be_open_are_read_all_the_same(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.open_shards, "MAX_OPEN_SHARDS", 2)
    before = len(os.listdir("/dev/fd"))
    reader, rows = reader_of(shard_folder, max_rows=39), rows_of(shard_folder)
    reader.request(rows)
    assert delivered(reader.take()) == written(shard_folder, rows)
    assert len(os.listdir("/dev/fd")) <= before + 2
    reader.close()
    assert len(os.listdir("/dev/fd")) == before


def test_a_changed_byte_names_shard_and_sample(shard_copy: Path) -> None:
    index = open_dataset(shard_copy).index("train")
    row = index[20]
    path = shard_copy / f"train-{row['shard']:06d}.tar"
    flip_byte(path, int(row["offset"]) + 40)
    reader = reader_of(shard_copy, max_rows=39)
    reader.request(np.arange(39))
    expected = rf"{path}, sample {row['id']}: its bytes are not those written; .* --repair SOURCE"
    with pytest.raises(ValueError, match=expected):
        reader.take()
    reader.clear()
    others = np.array([0, 19, 21, 38])
    reader.request(others)
    assert delivered(reader.take()) == written(shard_copy, others)
    reader.close()


def test_a_changed_raw_image_is_noticed(raw_shard_folder: Path, tmp_path: Path) -> None:
    index = open_dataset(raw_shard_folder).index("train")
    shards = open_dataset(raw_shard_folder).split("train").shards
    for shard in shards:
        (tmp_path / shard.name).write_bytes((raw_shard_folder / shard.name).read_bytes())
    flip_byte(tmp_path / shards[0].name, int(index[0]["offset"]) + len(RAW_HEADER))
    reader = Reader(
        LocalShards([tmp_path / shard.name for shard in shards]),
        index,
        header=RAW_HEADER,
        max_rows=4,
        depth=1,
        num_threads=1,
    )
    reader.request(np.array([0]))
    with pytest.raises(ValueError, match="its bytes are not those written"):
        reader.take()
    reader.close()


def test_a_shard_shortened_under_the_reader_is_named(shard_copy: Path) -> None:
    index = open_dataset(shard_copy).index("train")
    reader = reader_of(shard_copy, max_rows=39)
    path = shard_copy / "train-000000.tar"
    last = np.flatnonzero(index["shard"] == 0)[-1]
    cut_file(path, path.stat().st_size - int(index[last]["offset"]) - 10)
    reader.request(np.array([last]))
    expected = rf"{path}, sample {index[last]['id']}: the file ends after 10 of its \d+ bytes; "
    with pytest.raises(ValueError, match=expected):
        reader.take()
    reader.close()


def test_a_missing_shard_is_named_with_the_mend(shard_copy: Path) -> None:
    reader = reader_of(shard_copy)
    path = shard_copy / "train-000003.tar"
    path.unlink()
    reader.request(np.flatnonzero(shard_of_rows(shard_copy) == 3)[:2])
    with pytest.raises(ValueError, match=rf"{path} cannot be read .*prepare again"):
        reader.take()
    reader.close()


def test_an_error_is_raised_only_when_nothing_writes_the_buffer_any_more(
    shard_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a buffer that was cleared and given to the next step could be written by this one.
    reader = reader_of(shard_copy, num_threads=2)
    (shard_copy / "train-000000.tar").unlink()
    shards = shard_of_rows(shard_copy)
    failing, slow = np.flatnonzero(shards == 0)[:1], np.flatnonzero(shards == 4)[:1]
    ended, preadv = threading.Event(), os.preadv

    def read_slowly(*arguments: Any) -> int:
        threading.Event().wait(0.3)
        got = preadv(*arguments)
        ended.set()
        return got

    monkeypatch.setattr(os, "preadv", read_slowly)
    reader.request(np.concatenate([failing, slow]))
    with pytest.raises(ValueError, match=r"train-000000.tar cannot be read"):
        reader.take()
    assert ended.is_set()
    reader.close()


def test_a_disk_that_cannot_be_read_names_shard_and_sample(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(shard_folder)

    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    reader.request(np.array([7]))
    sample = open_dataset(shard_folder).index("train")["id"][7]
    expected = rf"train-00000\d.tar, sample {sample}: cannot be read \(Input/output error\)"
    with pytest.raises(ValueError, match=expected):
        reader.take()
    reader.close()


def test_interrupted_while_it_waits_no_buffer_is_given_away_that_is_still_written(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, rows = reader_of(shard_folder, depth=1), rows_of(shard_folder)
    preadv, go = os.preadv, threading.Event()

    def read_late(*arguments: Any) -> int:
        assert go.wait(30)
        return preadv(*arguments)

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "preadv", read_late)
    reader.request(rows[:8])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.latch.Latch.wait", interrupted)
        reader.take()
    threading.Timer(0.2, go.set).start()
    reader.clear()
    assert go.is_set()  # the old step is read no more
    reader.request(rows[8:16])
    assert delivered(reader.take()) == written(shard_folder, rows[8:16])
    reader.close()
