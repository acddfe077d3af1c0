"""The link is the slowest between any two GPUs, the same on every rank."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from tests.trainer.ranks import run_ranks
from trainer.collectives import Group
from trainer.link import (
    HOST_MEMORY,
    LINKS,
    NETWORK,
    NVLINK,
    PCI_EXPRESS,
    PROCESSORS,
    Link,
    between_gpus,
    find_link,
    have_nvlink,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def among(*numbers: int) -> Callable[[int, int], bool]:
    """True for two of these GPUs."""
    return lambda one, other: {one, other} <= set(numbers)


@pytest.mark.parametrize(
    ("num_ranks", "num_gpus", "peers", "nvlink", "link"),
    [
        (2, 2, among(0, 1), among(0, 1), NVLINK),
        (2, 4, among(0, 1), among(0, 1), NVLINK),  # what the others have does not matter
        (4, 4, among(0, 1, 2, 3), among(0, 1), PCI_EXPRESS),
        (4, 4, among(0, 1), among(0, 1), HOST_MEMORY),
        (2, 2, among(), among(), HOST_MEMORY),
        (2, 1, among(0, 1), among(0, 1), HOST_MEMORY),  # they share it
    ],
)
def test_the_slowest_pair_decides(
    num_ranks: int,
    num_gpus: int,
    peers: Callable[[int, int], bool],
    nvlink: Callable[[int, int], bool],
    link: Link,
) -> None:
    assert between_gpus(num_ranks, num_gpus, peers, nvlink) == link


def test_faster_links_hide_smaller_batches() -> None:
    images = [link.hides_from(4) for link in LINKS]
    assert images == sorted(images) and images[-1] == float("inf")
    assert NVLINK.hides_from(2) == NVLINK.hides_from(4) / 2


def test_machines_and_processors_are_told_without_looking_at_gpus() -> None:
    assert find_link(Group(), GPU, one_machine=False) == NETWORK
    assert find_link(Group(), CPU, one_machine=True) == PROCESSORS


def found_on_ranks() -> str:
    """Each sees other GPUs than the other."""
    rank = dist.get_rank()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: rank == 0)
        patch.setattr("trainer.link.have_nvlink", lambda one, other: False)
        return find_link(Group(dist.group.WORLD), GPU, one_machine=True).name


def test_every_rank_hears_what_the_first_one_finds() -> None:
    assert run_ranks(2, found_on_ranks) == [PCI_EXPRESS.name] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_nothing_is_known_of_nvlink_there_is_none() -> None:
    assert not have_nvlink(0, 1)
