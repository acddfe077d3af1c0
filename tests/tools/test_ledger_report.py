"""The command that proves an epoch: what it writes, says, and finds in a loader that errs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import pipeline.loader
import tools.ledger_report
from pipeline.ledger import read_ledger
from pipeline.loader import Batch, Loader
from pipeline.manifest import open_dataset
from pipeline.order import order
from pipeline.shards import index_name
from tools.verify_shards import main as verify_shards


def run(*arguments: object) -> Result:
    """Runs verify_shards.py in this process."""
    return CliRunner().invoke(verify_shards, [str(argument) for argument in arguments])


@pytest.mark.parametrize("how", ["planned", "--deliver"])
@pytest.mark.parametrize("window", ["all", 2])
def test_the_ledger_of_a_training_epoch_is_its_order_dealt_to_the_ranks(
    shard_folder: Path, tmp_path: Path, how: str, window: Any
) -> None:
    path = tmp_path / "ledger.jsonl"
    options = ["--epoch", 3, "--world-size", 4, "--batch-size", 8, "--window", window, "--seed", 9]
    done = run(shard_folder, *options, "--ledger", path, *([how] if how == "--deliver" else []))
    assert done.exit_code == 0, done.output
    assert "16 parts of 4 steps, 32 distinct samples, 7 missing (the last partial" in done.stdout
    assert done.stdout.splitlines()[-1] == "exactly once: yes"
    assert ("delivered by loaders: 16 parts, 0 unlike" in done.stdout) == (how == "--deliver")
    head, parts = read_ledger(path)
    dataset = open_dataset(shard_folder)
    assert head == {
        "ledger_version": 1, "split": "train", "epoch": 3, "seed": 9, "window": window,
        "order": "global", "global_batch": 8, "world_size": 4, "order_version": 1,
        "fingerprint": dataset.fingerprint("train"), "delivered": how == "--deliver",
    }  # fmt: skip
    rows = order([shard.samples for shard in dataset.split("train").shards], 9, 3, window)
    ids = dataset.index("train")["id"][rows]
    found = {(part.step, part.rank): part.ids.tolist() for part in parts}
    assert found == {
        (step, rank): ids[8 * step + 2 * rank :][:2].tolist()
        for step in range(4)
        for rank in range(4)
    }


@pytest.mark.parametrize("how", [(), ("--deliver",)])
def test_in_local_order_each_rank_gets_images_of_its_own_share_alone(
    shard_folder: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    path = tmp_path / "ledger.jsonl"
    options = ["--epoch", 2, "--world-size", 2, "--batch-size", 8, "--order", "local", *how]
    done = run(shard_folder, *options, "--ledger", path)
    assert done.exit_code == 0, done.output
    assert "train, epoch 2, seed 0, order local: 39 images" in done.stdout
    assert done.stdout.splitlines()[-1] == "exactly once: yes"
    assert ("delivered by loaders: 8 parts, 0 unlike" in done.stdout) == bool(how)
    head, parts = read_ledger(path)
    assert head["order"] == "local"
    ids = open_dataset(shard_folder).index("train")["id"]
    for rank in range(2):
        own = np.concatenate([part.ids for part in parts if part.rank == rank])
        assert len(own) == 16 and set(own) <= set(ids[rank::2].tolist())


@pytest.mark.parametrize("how", [(), ("--deliver",)])
def test_validation_visits_every_image_and_drops_none(
    shard_folder: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    path = tmp_path / "ledger.jsonl"
    options = ["--epoch", 0, "--world-size", 4, "--batch-size", 4, "--split", "val", *how]
    done = run(shard_folder, *options, "--ledger", path)
    assert done.exit_code == 0, done.output
    assert "val, epoch 0, index order: 15 images, global batch 4, world size 4" in done.stdout
    assert "16 parts of 4 steps, 15 distinct samples, 0 missing\n" in done.stdout
    assert "entropy" not in done.stdout
    ids = np.concatenate([part.ids for part in read_ledger(path)[1]])
    assert sorted(ids.tolist()) == sorted(open_dataset(shard_folder).index("val")["id"].tolist())


class FirstBatchTwice(Loader):
    """Delivers the first batch of an epoch in place of the second as well."""

    def __iter__(self) -> Iterator[Batch]:
        batches = list(super().__iter__())
        yield from [batches[0], batches[0], *batches[2:]]


class TwoBatchesExchanged(Loader):
    """Delivers each sample once, but in another order."""

    def __iter__(self) -> Iterator[Batch]:
        batches = list(super().__iter__())
        yield from [batches[1], batches[0], *batches[2:]]


@pytest.mark.parametrize(
    ("loader", "messages"),
    [
        (
            FirstBatchTwice,
            ["wrong: 8 samples came more than once", "wrong: 15 samples are missing, 7 should be",
             "8 parts, 2 unlike the order"],
        ),
        (TwoBatchesExchanged, ["32 distinct samples, 7 missing", "8 parts, 4 unlike the order"]),
    ],
)  # fmt: skip
def test_a_loader_that_errs_is_found_out(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch, loader: type[Loader], messages: list[str]
) -> None:
    options = [shard_folder, "--epoch", 0, "--world-size", 2, "--batch-size", 8]
    monkeypatch.setattr(pipeline.loader, "Loader", loader)
    done = run(*options, "--deliver")
    assert done.exit_code == 1
    assert [message for message in messages if message not in done.stdout] == []
    assert done.stdout.splitlines()[-1] == "exactly once: NO"
    assert run(*options).exit_code == 0


def test_an_order_that_errs_is_found_out(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeating(*arguments: Any) -> Any:
        rows = order(*arguments)
        rows[5] = rows[6]
        return rows

    monkeypatch.setattr(tools.ledger_report, "order", repeating)
    done = run(shard_folder, "--epoch", 0, "--batch-size", 13)
    assert done.exit_code == 1
    assert "wrong: 1 samples came more than once: sample" in done.stdout
    assert "wrong: 1 samples are missing, 0 should be" in done.stdout


def test_the_class_entropy_of_the_batches_is_told(shard_folder: Path) -> None:
    done = run(shard_folder, "--epoch", 0, "--batch-size", 13)
    lines = [line for line in done.stdout.splitlines() if line.startswith("class entropy")]
    assert [line.split("1.")[0] for line in lines] == [
        "class entropy of a batch ", "class entropy within a shard "
    ]  # fmt: skip
    assert lines[0].endswith("(3 of 3 steps)")


def test_sorted_shards_are_told_with_the_entropy_of_their_batches(
    sorted_shard_folder: Path,
) -> None:
    options = [sorted_shard_folder, "--epoch", 0, "--batch-size", 12]
    done = run(*options, "--window", 2)
    assert done.exit_code == 1
    assert "its shards are sorted by class" in done.stderr and "--window all" in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "entropy of a batch" in line]
    measured, expected = (float(number) for number in re.findall(r"\d\.\d\d", line))
    assert measured < 0.8 * expected
    assert run(*options).exit_code == 0


def test_without_a_batch_size_it_is_the_trainers(shard_folder: Path) -> None:
    assert "39 images, global batch 4, world size 1" in run(shard_folder, "--epoch", 0).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-size", 40), "--batch-size 40 is over the 39 images of train"),
        (("--world-size", 3, "--batch-size", 8), "world size 3 does not divide the global batch"),
        (("--split", "test"), "no split 'test', it has: train, val"),
        (("--order", "local", "--window", 2), "--order local shuffles all of a share"),
        (("--order", "local", "--split", "val"), "order local is of training"),
    ],
)
def test_an_epoch_no_loader_would_make_ends_with_one_message(
    shard_folder: Path, options: tuple[Any, ...], message: str
) -> None:
    done = run(shard_folder, "--epoch", 0, *options)
    (line,) = done.stderr.splitlines()
    assert done.exit_code == 1 and line.startswith("error: ") and message in line


def test_a_damaged_index_and_a_ledger_that_cannot_be_written_end_with_one_message(
    shard_copy: Path, tmp_path: Path
) -> None:
    done = run(shard_copy, "--epoch", 0, "--ledger", tmp_path / "none" / "ledger.jsonl")
    assert done.exit_code == 1 and "none/ledger.jsonl: No such file" in done.stderr
    (shard_copy / index_name("train")).write_bytes(b"")
    done = run(shard_copy, "--epoch", 0)
    assert done.exit_code == 1 and "train.index.npy is damaged" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--world-size", 2), "--world-size needs --epoch"),
        (("--ledger", "x"), "--ledger needs --epoch"),
        (("--order", "local"), "--order needs --epoch"),
        (("--deliver",), "--deliver needs --epoch"),
        (("--epoch", 0, "--window", 0), "'0' is neither a number of shards from 1 nor all"),
        (("--epoch", 0, "--window", "some"), "'some' is neither a number of shards"),
        (("--epoch", 0, "--world-size", 0), "0 is not in the range x>=1"),
        (("--epoch", -1), "-1 is not in the range 0<=x<="),
        (("--epoch", 2**70), "is not in the range 0<=x<="),
        (("--epoch", 0, "--repair", "x"), "are not for --epoch"),
        (("--epoch", 0, "--sample", 0.5), "are not for --epoch"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(
    shard_folder: Path, options: tuple[Any, ...], message: str
) -> None:
    done = run(shard_folder, *options)
    assert done.exit_code == 2 and message in done.stderr


def test_shards_of_an_object_store_have_an_order_too_but_nothing_to_deliver(
    in_memory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    done = run(in_memory, "--epoch", 1, "--world-size", 2, "--batch-size", 8, "--ledger", path)
    assert done.exit_code == 0, done.output
    assert len(read_ledger(path)[1]) == 8 and "exactly once: yes" in done.stdout
    done = run(in_memory, "--epoch", 1, "--deliver")
    assert done.exit_code == 1 and "--deliver reads every image" in done.stderr
