"""The cores this process may use, not those the machine has."""

import os

import pytest

from pipeline.cores import available_cores, cores_of_rank, ranks_here


def test_a_bound_process_counts_the_cores_it_is_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    assert available_cores() == 3


def test_where_processes_cannot_be_bound_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("cores", "told", "asked", "share"),
    [
        (16, None, None, 16),
        (16, "2", None, 8),
        (7, "2", None, 3),
        (2, "8", None, 1),
        (16, "2", 4, 4),
    ],
)
def test_the_ranks_of_a_host_share_its_cores_evenly(
    monkeypatch: pytest.MonkeyPatch, cores: int, told: str | None, asked: int | None, share: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if told is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", told)
    assert cores_of_rank(asked) == share


@pytest.mark.parametrize("told", ["0", "two", "-1", ""])
def test_a_number_of_ranks_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", told)
    with pytest.raises(ValueError, match=f"LOCAL_WORLD_SIZE is '{told}' in the environment"):
        cores_of_rank()


@pytest.mark.parametrize(
    ("told", "asked", "number"), [(None, None, 1), ("3", None, 3), ("3", 2, 2)]
)
def test_ranks_here_are_those_given_or_those_that_torchrun_says(
    monkeypatch: pytest.MonkeyPatch, told: str | None, asked: int | None, number: int
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if told is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", told)
    assert ranks_here(asked) == number
