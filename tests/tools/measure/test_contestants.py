"""Who can be measured here, and what is said of who cannot."""

from dataclasses import replace

import torch

from pipeline.backends import BACKENDS
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


def test_whoever_delivers_something_else_than_the_reference_says_so() -> None:
    """That the others do not is held by test_feeds.py."""
    everyone = [*PEERS.values(), *map(our_entrant, BACKENDS)]
    told = {entrant.name: entrant.differs for entrant in everyone}
    assert [name for name, differs in told.items() if not differs] == [
        "torch", "torchvision", "dali-cpu", "numpy",
    ]  # fmt: skip
    ffcv = PEERS["ffcv"]
    assert "fast DCT" in ffcv.differs and not replace(ffcv, encoding="raw").differs
    assert "float16" in replace(our_entrant("dali-gpu"), encoding="raw").differs
    both = PEERS["stock-dali-gpu"].differs
    assert "decoder rounds" in both and both.endswith(f"; {PEERS['stock-dali'].differs}")
