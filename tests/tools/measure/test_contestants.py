"""Who can be measured here, and what is said of who cannot."""

import torch

from tools.measure.contestants import NO_GPU, PEERS, Entrant, our_entrant


def test_a_peer_that_is_not_installed_is_listed_with_the_command_that_installs_it() -> None:
    entrant = Entrant(
        name="absent",
        module="never.imported",
        needs=("json", "no_such_package.inside", "no_such_module"),
        install="pip install it",
    )
    assert entrant.lack == (
        "not installed (no_such_package.inside, no_such_module): pip install it"
    )


def test_what_is_installed_lacks_nothing() -> None:
    assert our_entrant("numpy").lack is None
    assert PEERS["torch"].lack is None


def test_who_needs_a_gpu_lacks_it_where_there_is_none() -> None:
    entrant = Entrant(name="on-gpu", module="never.imported", needs=(), install="", on_gpu=True)
    assert entrant.lack == (None if torch.cuda.is_available() else NO_GPU)


def test_the_names_of_the_peers_are_frozen() -> None:
    assert list(PEERS) == [
        "torch", "torchvision", "stock-dali", "stock-dali-gpu", "webdataset", "ffcv",
    ]  # fmt: skip
    assert all(name == entrant.name for name, entrant in PEERS.items())
