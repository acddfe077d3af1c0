"""Where decoded images are kept: where they fit, what they take, and what is refused."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.renderer
import pipeline.resident
from pipeline.loader import LoaderConfig
from pipeline.resident import (
    IMAGE_BYTES,
    HostStore,
    Needs,
    find_residence,
    free_host_bytes,
    needs,
    share_of,
)
from tests.pipeline.conftest import Open, kept, opener


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens loaders that keep images in the host's memory, and closes them after the test."""
    yield from opener(batch_size=6, threads=2, resident="host", backend="auto")


def test_half_the_bytes_and_shares_apart_need_less() -> None:
    image_bytes = IMAGE_BYTES // 2
    found = needs(10, on_gpu=True, num_ranks=4, image_bytes=image_bytes, apart=True)
    assert found == Needs(device=3 * image_bytes, host=10 * image_bytes, device_host=0)


def test_an_image_is_kept_by_one_rank_and_shares_are_even() -> None:
    for num_images, num_ranks in itertools.product(range(1, 40), range(1, 7)):
        kept_by = [len(range(rank, num_images, num_ranks)) for rank in range(num_ranks)]
        assert max(kept_by) == share_of(num_images, num_ranks)
        assert sum(kept_by) == num_images


def test_what_a_split_takes_is_what_its_images_do() -> None:
    assert needs(10, on_gpu=False, num_ranks=1) == Needs(
        device=None, host=10 * IMAGE_BYTES, device_host=0
    )
    assert needs(10, on_gpu=True, num_ranks=4) == Needs(
        device=3 * IMAGE_BYTES, host=10 * IMAGE_BYTES, device_host=10 * IMAGE_BYTES
    )


def test_steps_that_are_prepared_ahead_have_room_on_both_sides() -> None:
    assert needs(10, on_gpu=True, num_ranks=1, num_ahead=6) == Needs(
        device=16 * IMAGE_BYTES, host=10 * IMAGE_BYTES, device_host=6 * IMAGE_BYTES
    )
    found = needs(10, on_gpu=True, num_ranks=4, num_ahead=6)
    assert found.device == 9 * IMAGE_BYTES and found.device_host == 34 * IMAGE_BYTES


@pytest.mark.parametrize(
    ("asked", "free_device", "free_host", "where"),
    [
        ("auto", 100, 0, "device"),
        ("auto", 99, 1000, "host"),
        ("auto", 99, 999, "none"),
        ("device", 100, 0, "device"),
        ("host", 100, 1000, "host"),
    ],
)
def test_auto_is_the_first_place_with_room(
    asked: str, free_device: int, free_host: int, where: str
) -> None:
    find = partial(find_residence, asked, Needs(device=100, host=1000, device_host=0))
    found = find(free_device_bytes=free_device, free_host_bytes=free_host)
    assert found.where == where and found.reason


@pytest.mark.parametrize(
    ("asked", "needed", "told"),
    [
        ("device", Needs(device=None, host=10, device_host=0), "no GPU"),
        ("device", Needs(device=5 * 10**9, host=10, device_host=0), "5.0 GB .* the GPU's memory"),
        ("device", Needs(device=10, host=10, device_host=2 * 10**9), "2.0 GB .* the host's"),
        ("host", Needs(device=10, host=3 * 10**9, device_host=0), "3.0 GB .* the host's memory"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_size(asked: str, needed: Needs, told: str) -> None:
    with pytest.raises(ValueError, match=f"--resident {asked}: .*{told}.* --resident auto"):
        find_residence(asked, needed, free_device_bytes=1000, free_host_bytes=1000)


def test_a_containers_limit_bounds_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.resident, "CGROUP_ROOT", tmp_path)
    for num_ranks in (1, 2):
        assert free_host_bytes(num_ranks) > 0
        (tmp_path / "memory.max").write_text("max\n")
        unbounded = free_host_bytes(num_ranks)
        (tmp_path / "memory.max").write_text("1000000\n")
        assert free_host_bytes(num_ranks) <= 800_000 < unbounded


def test_without_room_auto_decodes_and_says_why(
    shard_folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.renderer, "free_host_bytes", lambda _: 0)
    loader = opened(shard_folder, resident="auto", backend="numpy")
    assert "not resident: " in loader.description and "0 MB left" in loader.description
    expected = opened(shard_folder, resident="none", backend="numpy")
    for _ in range(2):
        assert [kept(batch) for batch in loader] == [kept(batch) for batch in expected]


def test_without_memory_to_share_auto_decodes_and_host_is_refused(
    shard_folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline.resident, "shared_array", refuse)
    ranks: dict[str, Any] = {"world_size": 2, "local_world_size": 2}
    with pytest.raises(ValueError, match="No space left.*--shm-size"):
        opened(shard_folder, **ranks)
    assert "not resident" in opened(shard_folder, resident="auto", **ranks).description


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"resident": "disk"}, "resident must be one of device, host, none, auto, not 'disk'"),
        ({"resident": "host", "backend": "dali-cpu"}, "--backend dali-cpu does not go with it"),
        ({"resident": "auto", "calibrate": True}, "--calibrate measures decoding"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LoaderConfig(shards=Path("shards"), batch_size=4, **changes)


def test_a_store_knows_what_it_was_given() -> None:
    store = HostStore(5, shared=None)
    rows = np.arange(5)
    assert not store.known(rows).any()
    store.put(3, np.full((256, 256, 3), 7, np.uint8))
    assert store.known(rows).tolist() == [False, False, False, True, False]
    assert (store.images[3] == 7).all()
