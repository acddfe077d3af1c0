"""A loader's state is a position: cut and resumed anywhere, by any loader, no bit changes."""

import importlib.util
import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader import Batch, Loader, LoaderConfig
from pipeline.order import Window
from tests.pipeline.conftest import Open, kept

BACKENDS = ["numpy"] + ["dali-cpu"] * (importlib.util.find_spec("nvidia") is not None)


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_resumed_at_every_step_the_batches_are_bit_equal(
    shard_folder: Path, backend: str, training: bool, opened: Open
) -> None:
    options: dict[str, Any] = {"split": "train", "training": training, "seed": 3}
    loader = opened(shard_folder, **options)
    states, batches = [], []
    for _ in range(2):  # epochs
        iterator = iter(loader)
        for _ in range(len(loader)):
            states.append(json.loads(json.dumps(loader.state_dict())))
            batches.append(kept(next(iterator)))
        assert next(iterator, None) is None
    other = opened(shard_folder, **options, backend=backend, prefetch=3)
    for place, state in enumerate(states):
        other.load_state_dict(state)
        rest = [kept(batch) for batch in other]  # what is left of that epoch
        end = len(loader) * (1 + place // len(loader))
        assert rest == batches[place:end]
        assert (other.epoch, other.step) == (end // len(loader), 0)


def test_resumed_by_a_fresh_loader_the_batches_are_bit_equal(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    first = opened(shard_folder, backend=backend)
    iterator = iter(first)
    next(iterator), next(iterator)
    state = first.state_dict()
    expected = [kept(batch) for batch in iterator]
    fresh = opened(shard_folder, backend=backend)
    fresh.load_state_dict(state)
    assert [kept(batch) for batch in fresh] == expected


def joined(parts: Sequence[Batch]) -> tuple[bytes, list[int], list[int], list[list[int]]]:
    """What the ranks got at one step, as one batch, comparable."""
    return kept(
        Batch(
            images=torch.cat([part.images for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            ids=torch.cat([part.ids for part in parts]),
            crop=torch.cat([part.crop for part in parts]),
        )
    )


@pytest.mark.parametrize("world_size", [2, 8])
@pytest.mark.parametrize(("training", "window"), [(True, "all"), (True, 2), (False, "all")])
def test_cut_anywhere_the_batches_go_on_bit_equal_on_any_number_of_ranks(
    shard_folder: Path, backend: str, training: bool, window: Window, world_size: int, opened: Open
) -> None:
    options: dict[str, Any] = {"training": training, "window": window, "seed": 3}
    alone = opened(shard_folder, **options)
    states, expected = [], []
    for _ in range(2):  # epochs
        iterator = iter(alone)
        for _ in range(len(alone)):
            states.append(json.loads(json.dumps(alone.state_dict())))
            expected.append(kept(next(iterator)))
        assert next(iterator, None) is None
    options |= {"backend": backend, "threads": 1, "world_size": world_size}
    ranks = [opened(shard_folder, **options, rank=rank) for rank in range(world_size)]
    for cut, state in enumerate(states):
        for rank in ranks:
            rank.load_state_dict(state)
        end = len(alone) * (1 + cut // len(alone))
        assert [joined(parts) for parts in zip(*ranks, strict=True)] == expected[cut:end]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_handed_on_between_other_ranks_threads_and_backends_no_bit_changes(
    shard_folder: Path, training: bool, seed: int, opened: Open
) -> None:
    """Three epochs in legs of a few steps, each leg by other loaders than the one before."""
    rng = np.random.default_rng(seed)
    options: dict[str, Any] = {"training": training, "window": 3, "seed": seed}
    alone = opened(shard_folder, **options)
    expected = [kept(batch) for _ in range(3) for batch in alone]
    state, found, world_sizes = opened(shard_folder, **options).state_dict(), [], set()
    while state["epoch"] < 3:
        options["world_size"] = int(rng.choice([1, 2, 4, 8]))
        world_sizes.add(options["world_size"])
        options["backend"] = str(rng.choice(BACKENDS))
        options |= {"threads": int(rng.integers(1, 4)), "prefetch": int(rng.integers(1, 5))}
        ranks = [opened(shard_folder, **options, rank=r) for r in range(options["world_size"])]
        for rank in ranks:
            rank.load_state_dict(state)
        iterators = [iter(rank) for rank in ranks]
        leg = itertools.islice(zip(*iterators, strict=True), int(rng.integers(1, 5)))
        found += [joined(parts) for parts in leg]
        states = [rank.state_dict() for rank in ranks]
        assert states == [states[0]] * len(ranks)
        state = states[0]
    assert found == expected
    assert len(world_sizes) > 1


@pytest.mark.parametrize("num_taken", [1, 3, 4])
def test_left_in_mid_epoch_the_next_loop_goes_on_where_it_was(
    shard_folder: Path, backend: str, num_taken: int, opened: Open
) -> None:
    expected = [kept(batch) for batch in opened(shard_folder)]
    loader = opened(shard_folder, backend=backend)
    found = []
    for batch in loader:
        found.append(kept(batch))
        if len(found) == num_taken:
            break
    assert (loader.epoch, loader.step) == (0, num_taken)
    found += [kept(batch) for batch in loader]
    assert found == expected
    assert (loader.epoch, loader.step) == (1, 0)


def test_the_state_counts_what_was_delivered_not_what_was_read_ahead(
    shard_folder: Path, opened: Open
) -> None:
    loader = opened(shard_folder, prefetch=3)
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict()["step"] == 1


def test_a_state_taken_after_the_last_batch_goes_on_with_the_next_epoch(
    shard_folder: Path, opened: Open
) -> None:
    loader = opened(shard_folder)
    states = [loader.state_dict() for _ in loader]
    following = kept(next(iter(loader)))
    loader.load_state_dict(states[-1])
    assert list(loader) == []
    assert kept(next(iter(loader))) == following


def test_the_state_holds_what_the_contract_lists_and_nothing_else(
    shard_folder: Path, opened: Open
) -> None:
    state = opened(shard_folder, seed=2**64 - 1, window=2).state_dict()
    assert state.keys() == {
        "seed", "split", "epoch", "step", "global_batch", "window", "drop_last", "augmentation",
        "fingerprint", "order_version", "hw_decoder_load",
    }  # fmt: skip
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"batch_size": 4}, "global_batch is 8 in the saved state and 4 here"),
        ({"seed": 1}, "seed is 0 in the saved state and 1 here"),
        ({"window": 2}, "window is all in the saved state and 2 here"),
        ({"lighting": "off"}, "augmentation"),
        ({"split": "val"}, "split is train in the saved state and val here"),
        ({"training": False}, "drop_last is True in the saved state and False here"),
    ],
)
def test_a_state_of_other_batches_is_refused_by_name(
    shard_folder: Path, changes: dict[str, Any], name: str, opened: Open
) -> None:
    state = opened(shard_folder).state_dict()
    with pytest.raises(ValueError, match=f"cannot resume: {name}"):
        opened(shard_folder, **changes).load_state_dict(state)


def test_a_state_of_other_shards_is_refused(
    shard_folder: Path, raw_shard_folder: Path, opened: Open
) -> None:
    state = opened(shard_folder).state_dict()
    with pytest.raises(ValueError, match="cannot resume: fingerprint"):
        opened(raw_shard_folder).load_state_dict(state)


def test_the_decoder_of_a_state_is_told_and_compared_by_exact_loaders_only(
    shard_folder: Path, opened: Open
) -> None:
    loader = opened(shard_folder)
    state = loader.state_dict()
    assert state["hw_decoder_load"] is None  # the decoder is not a GPU's
    exact = opened(shard_folder, exact=True)
    for load in (None, 0.0):
        exact.load_state_dict({**state, "hw_decoder_load": load, "step": 2})
        assert exact.step == 2
    loader.load_state_dict({**state, "hw_decoder_load": 0.65, "step": 3})
    assert loader.step == 3
    with pytest.raises(ValueError, match=r"cannot resume exactly: hw_decoder_load is 0.65 in"):
        exact.load_state_dict({**state, "hw_decoder_load": 0.65})
    assert exact.step == 2


def test_a_state_without_a_decoder_is_taken(shard_folder: Path, opened: Open) -> None:
    state = opened(shard_folder).state_dict()
    del state["hw_decoder_load"]  # of a release before there was one
    opened(shard_folder, exact=True).load_state_dict(state)


@pytest.mark.parametrize(("exact", "load"), [(False, 0.9), (True, 0.0)])
def test_an_exact_loader_decodes_nothing_with_an_engine(
    shard_folder: Path, opened: Open, exact: bool, load: float
) -> None:
    loader = opened(shard_folder, exact=exact, hw_decoder_load=0.9)
    assert loader.settings.hw_decoder_load == load


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 5},
        {"step": -1},
        {"step": "2"},
        {"epoch": -1},
        {"epoch": None},
        {"order_version": 0},
    ],
)
def test_an_impossible_state_is_refused_and_the_loader_stays_where_it_was(
    shard_folder: Path, changes: dict[str, Any], opened: Open
) -> None:
    loader = opened(shard_folder)
    with pytest.raises(ValueError, match="cannot resume"):
        loader.load_state_dict({**loader.state_dict(), **changes})
    assert (loader.epoch, loader.step) == (0, 0)


def test_set_epoch_moves_to_the_beginning_of_another_epoch_only(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    reference = opened(shard_folder)
    epochs = [[batch.ids.tolist() for batch in reference] for _ in range(4)]
    loader = opened(shard_folder, backend=backend)
    next(iter(loader))
    loader.set_epoch(0)  # already in it: stays after the first batch
    assert [batch.ids.tolist() for batch in loader] == epochs[0][1:]
    next(iter(loader))
    loader.set_epoch(3)
    assert (loader.epoch, loader.step) == (3, 0)
    assert [batch.ids.tolist() for batch in loader] == epochs[3]
    loader.set_epoch(1)
    assert [batch.ids.tolist() for batch in loader] == epochs[1]
    loader.set_epoch(0)  # the epoch just before
    assert [batch.ids.tolist() for batch in loader] == epochs[0]
    with pytest.raises(ValueError, match=r"within 0..2\*\*63-1, not -1"):
        loader.set_epoch(-1)
    with pytest.raises(ValueError, match=r"within 0..2\*\*63-1, not 9223372036854775808"):
        loader.set_epoch(2**63)
    with pytest.raises(TypeError, match="float"):
        loader.set_epoch(1.5)  # type: ignore[arg-type]  # what users may give


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch_size=st.sampled_from([4, 6, 8, 12]),
    window=st.sampled_from(["all", 1, 2, 3]),
    training=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**40),
    data=st.data(),
)
def test_from_any_cut_any_ranks_threads_and_backend_go_on_bit_equal(
    shard_folder: Path,
    batch_size: int,
    window: Window,
    training: bool,
    seed: int,
    epoch: int,
    data: st.DataObject,
) -> None:
    options: dict[str, Any] = {
        "shards": shard_folder, "split": "train" if training else "val", "training": training,
        "batch_size": batch_size, "window": window, "seed": seed,
    }  # fmt: skip
    with ExitStack() as stack:
        whole = stack.enter_context(Loader(LoaderConfig(**options, backend="numpy", threads=1)))
        whole.set_epoch(epoch)
        iterator = iter(whole)
        for _ in range(data.draw(st.integers(0, len(whole) - 1), "steps before the cut")):
            next(iterator)
        state = json.loads(json.dumps(whole.state_dict()))
        expected = [kept(batch) for batch in iterator]
        sizes = [size for size in (1, 2, 3, 4, 6) if batch_size % size == 0]
        world_size = data.draw(st.sampled_from(sizes), "world size")
        options |= {
            "backend": data.draw(st.sampled_from(BACKENDS), "backend"),
            "threads": data.draw(st.integers(1, 3), "threads"),
            "prefetch": data.draw(st.integers(1, 4), "prefetch"),
        }
        ranks = [
            stack.enter_context(Loader(LoaderConfig(**options, world_size=world_size, rank=rank)))
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.load_state_dict(state)
        assert [joined(parts) for parts in zip(*ranks, strict=True)] == expected
