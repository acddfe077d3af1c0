"""Whole runs with what can be asked for beside the recipe, each stopped and resumed."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.test_session import EVENTS, assert_same_run, config, last, metrics, train
from tests.trainer.test_sinks import age
from trainer.checkpoint import restore_model
from trainer.config import RunConfig
from trainer.evaluate import Errors, evaluate
from trainer.model import AlexNet
from trainer.session import Session

EVERYTHING: dict[str, Any] = {
    "precision": "fp16",
    "micro_batch": 3,
    "ema": 0.5,
    "weight_report": 2,
}


@pytest.mark.parametrize("preset", ["modern", "paper", "kriz2012"])
def test_with_everything_on_a_run_stopped_anywhere_ends_bit_equal(
    preset: str, shard_folder: Path, tmp_path: Path
) -> None:
    """kriz2012 with its drop, its slower conv1 and conv1 frozen, stopped before and after each."""
    options = {"preset": preset, **EVERYTHING}
    limits = [1, 6]
    if preset == "kriz2012":
        options |= {"epochs": None, "settings": EVENTS}
        limits = [3, 5, 7, 10]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(shard_folder, whole, **options)
    for limit in limits:
        assert train(shard_folder, parts, limit_steps=limit, **options)
        assert last(parts).progress["step"] == limit
    assert train(shard_folder, parts, **options)
    assert_same_run(whole, parts)
    checkpoint = last(whole)
    assert checkpoint.ema.keys() == checkpoint.model.keys() and "scale" in checkpoint.arithmetic


def test_a_layer_frozen_from_the_first_step_stays_as_it_was_in_fp16(
    shard_folder: Path, tmp_path: Path
) -> None:
    """It never has a gradient; the scaled step passes over it, also after a resume."""
    frozen = ('layer_rates=[[0, "conv1", 0.0], [0, "fc6", 0.0]]',)
    options = {"preset": "paper", "settings": frozen, **EVERYTHING}
    with Session(config(shard_folder, tmp_path, **options)) as session:
        before = {name: value.clone() for name, value in session.model.state_dict().items()}
    assert train(shard_folder, tmp_path, limit_steps=3, **options)
    assert train(shard_folder, tmp_path, **options)
    for name, value in last(tmp_path).model.items():
        held = name.split(".")[0] in ("conv1", "fc6", "normalise")
        assert torch.equal(value, before[name]) == held, name


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize("stops", [(5, 9), (8, 12, 15), (4, 11, 16)])
def test_a_plateau_found_before_a_stop_holds_after_it(
    stops: tuple[int, ...],
    ema: float | None,
    shard_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made-up errors of five epochs of four steps: drops after the second and the fifth best."""
    errors = [0.9, 0.9, 0.8, 0.7, 0.7]

    def made_up(model: AlexNet, batches: object, **options: object) -> Errors:
        error = errors[sessions[-1].epoch]
        return Errors(num_images=15, loss=1.0, top1_error=error, top5_error=0.0)

    monkeypatch.setattr("trainer.session.evaluate", made_up)
    sessions: list[Session] = []

    def run(out: Path, limit_steps: int | None = None) -> None:
        settings = ("patience_epochs=1", "num_drops=2")
        with Session(
            config(
                shard_folder, out, preset="paper", epochs=5, settings=settings, ema=ema,
                limit_steps=limit_steps,
            )
        ) as session:  # fmt: skip
            sessions.append(session)
            assert session.run()

    run(tmp_path / "whole")
    for stop in stops:
        run(tmp_path / "parts", stop)
    run(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    rates = [line["learning_rate"] for line in metrics(tmp_path / "parts")]
    assert rates == pytest.approx([0.01 / 16] * 2 + [0.001 / 16] * 3)
    assert last(tmp_path / "parts").schedule["drops"] == 2


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


@pytest.mark.parametrize("preset", ["modern", "paper", "kriz2012"])
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
