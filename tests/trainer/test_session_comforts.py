"""Whole runs with what can be asked for beside the recipe, each stopped and resumed."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.test_session import assert_same_run, config, last, metrics, train
from tests.trainer.test_sinks import age
from trainer.checkpoint import restore_model
from trainer.config import RunConfig
from trainer.evaluate import evaluate
from trainer.session import Session

EVERYTHING: dict[str, Any] = {
    "precision": "fp16",
    "micro_batch": 3,
    "ema": 0.5,
    "weight_report": 2,
}


@pytest.mark.parametrize("preset", ["modern", "paper"])
def test_with_everything_on_a_run_stopped_anywhere_ends_bit_equal(
    preset: str, shard_folder: Path, tmp_path: Path
) -> None:
    options = {"preset": preset, **EVERYTHING}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(shard_folder, whole, **options)
    for limit in (1, 6):
        assert train(shard_folder, parts, limit_steps=limit, **options)
        assert last(parts).progress["step"] == limit
    assert train(shard_folder, parts, **options)
    assert_same_run(whole, parts)
    checkpoint = last(whole)
    assert checkpoint.ema.keys() == checkpoint.model.keys() and "scale" in checkpoint.arithmetic


def test_limited_steps_end_well_and_say_how_to_go_on(
    shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(shard_folder, tmp_path, limit_steps=3)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "stopped after step 3; the same command without --limit-steps resumes"
    )
    before = (tmp_path / "last.safetensors").read_bytes()
    assert train(shard_folder, tmp_path, limit_steps=3)  # no step more
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_limit_at_the_end_of_an_epoch_lets_it_be_validated(
    shard_folder: Path, tmp_path: Path
) -> None:
    assert train(shard_folder, tmp_path, limit_steps=4)
    assert [line["step"] for line in metrics(tmp_path)] == [4]
    assert train(shard_folder, tmp_path, limit_steps=100)
    assert [line["step"] for line in metrics(tmp_path)] == [4, 8]


def test_the_averaged_weights_are_validated_and_are_what_predicts(
    shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(shard_folder, tmp_path, ema=0.75)
    assert "errors are of the weights averaged with decay 0.75" in capsys.readouterr().out
    checkpoint = last(tmp_path)
    assert not torch.equal(checkpoint.ema["fc8.weight"], checkpoint.model["fc8.weight"])
    with Session(config(shard_folder, tmp_path, ema=0.75)) as session:
        errors = evaluate(restore_model(checkpoint, torch.device("cpu")), session.val_feed)
    assert errors.loss == metrics(tmp_path)[-1]["val_loss"]


def test_an_average_or_micro_batches_seen_by_batch_norm_make_another_run(
    shard_folder: Path, tmp_path: Path
) -> None:
    train(shard_folder, tmp_path, limit_steps=1)
    with pytest.raises(ValueError, match="ema is None, asked for 0.9"):
        train(shard_folder, tmp_path, ema=0.9)
    with pytest.raises(ValueError, match="micro_batch is None, asked for 4"):
        train(shard_folder, tmp_path, micro_batch=4)


def test_a_run_without_batch_norm_may_be_taken_up_in_other_micro_batches(
    shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(shard_folder, tmp_path, preset="paper", limit_steps=1)
    train(shard_folder, tmp_path, preset="paper", limit_steps=2, micro_batch=4)
    out = capsys.readouterr().out
    assert "micro-batches of 4 images\n" in out and last(tmp_path).progress["step"] == 2


def test_batch_norm_in_micro_batches_is_told(
    shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(shard_folder, tmp_path, micro_batch=4, limit_steps=1)
    out = capsys.readouterr().out
    assert "micro-batches of 4 images; batch norm sees one at a time\n" in out


def test_weights_are_told_in_the_epochs_asked_for(
    shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(shard_folder, tmp_path, weight_report=2)
    out = capsys.readouterr().out
    assert "weights at step 8" in out and "weights at step 4" not in out
    first, second = metrics(tmp_path)
    assert first["weights"] is None
    assert second["weights"].keys() == last(tmp_path).momentum.keys()
    change = second["weights"]["conv1.weight"]
    assert change["ratio"] == pytest.approx(change["mean_abs_step"] / change["mean_abs"])
    mean_abs = last(tmp_path).model["conv1.weight"].abs().mean().item()
    assert change["mean_abs"] == pytest.approx(mean_abs)


def test_the_table_beside_the_lines_says_the_same(shard_folder: Path, tmp_path: Path) -> None:
    train(shard_folder, tmp_path)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(rows, metrics(tmp_path), strict=True):
        assert list(row) == list(line)
        assert row == {key: "" if value is None else str(value) for key, value in line.items()}


def test_tensorboard_is_written_where_asked(shard_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(shard_folder, tmp_path / "plain", limit_steps=1)
    assert not (tmp_path / "plain" / "tensorboard").exists()
    train(shard_folder, tmp_path / "run", tensorboard=True, limit_steps=5)
    age(tmp_path / "run")
    train(shard_folder, tmp_path / "run", tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("val_loss")]
    told = [(line["step"], pytest.approx(line["val_loss"])) for line in metrics(tmp_path / "run")]
    assert shown == told


def test_weights_spoilt_in_the_last_step_before_a_stop_are_not_saved(
    shard_folder: Path, tmp_path: Path
) -> None:
    train(shard_folder, tmp_path, limit_steps=1)
    before = (tmp_path / "last.safetensors").read_bytes()
    with Session(config(shard_folder, tmp_path, limit_steps=3)) as session:
        right = session.trainer.train_step

        def spoil(batch: Any) -> torch.Tensor:
            loss = right(batch)
            if session.trainer.step == 3:
                with torch.no_grad():
                    session.model.fc8.bias[0] = float("inf")
            return loss

        session.trainer.train_step = spoil  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="fc8.bias after step 3 is not finite; .* still good"):
            session.run()
    assert (tmp_path / "last.safetensors").read_bytes() == before


# ---- --overfit ----


@pytest.mark.parametrize("preset", ["modern", "paper"])
def test_an_overfit_run_stopped_anywhere_ends_bit_equal(
    preset: str, shard_folder: Path, tmp_path: Path
) -> None:
    options = {"preset": preset, "overfit": 11, "batch_size": 3}  # three steps, going round
    assert train(shard_folder, tmp_path / "whole", **options)
    for limit in (2, 4):
        assert train(shard_folder, tmp_path / "parts", limit_steps=limit, **options)
    assert train(shard_folder, tmp_path / "parts", **options)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    lines = metrics(tmp_path / "whole")
    assert [(line["step"], line["num_val_images"]) for line in lines] == [(3, 11), (6, 11)]


def test_a_few_images_are_learnt_by_heart_and_that_is_told(
    shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"overfit": 8, "batch_size": 4, "epochs": 12, "width": 1 / 16}
    train(shard_folder, tmp_path, settings=("dropout=false",), **options)
    out = capsys.readouterr().out
    assert "OVERFIT: trains on the first 8 training images over and over" in out
    assert "of 8 images in 3 classes, 8 to validate" in out
    errors = [line["top1_error"] for line in metrics(tmp_path)]
    assert errors[0] > 0 and errors[-1] == 0


def test_an_overfit_run_and_an_ordinary_one_do_not_share_a_folder(
    shard_folder: Path, tmp_path: Path
) -> None:
    few = RunConfig(shards=shard_folder, overfit=8)
    assert few.folder == Path("runs/modern-0-overfit-8")
    train(shard_folder, tmp_path, limit_steps=1)
    with pytest.raises(ValueError, match="overfit is None, asked for 8"):
        train(shard_folder, tmp_path, overfit=8, batch_size=8)


def test_more_images_than_there_are_are_refused(shard_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--overfit is 40, the training split has 39 images"):
        train(shard_folder, tmp_path / "run", overfit=40)
    assert not (tmp_path / "run").exists()
