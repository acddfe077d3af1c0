"""The report of an epoch, and when progress is shown."""

import pytest

from trainer.metrics import Progress, Report


def report(epoch: int) -> Report:
    return Report(
        epoch=epoch,
        step=10 * epoch,
        train_loss=2.5,
        learning_rate=0.01,
        val_loss=2.25,
        top1_error=0.5,
        top5_error=0.125,
        num_val_images=40,
        images_per_second=200.0,
        train_seconds=8.0,
        val_seconds=1.0,
        data_wait_seconds=2.0,
        read_wait_seconds=0.25,
        decode_wait_seconds=1.0,
        handover_wait_seconds=0.5,
        device_wait_seconds=0.25,
    )


def test_the_keys_are_stable() -> None:
    line = report(1).to_dict()
    assert list(line) == [
        "epoch",
        "step",
        "train_loss",
        "learning_rate",
        "val_loss",
        "top1_error",
        "top5_error",
        "num_val_images",
        "images_per_second",
        "train_seconds",
        "val_seconds",
        "data_wait_seconds",
        "read_wait_seconds",
        "decode_wait_seconds",
        "handover_wait_seconds",
        "device_wait_seconds",
        "fed_ratio",
        "weights",
    ]
    assert line["fed_ratio"] is None and line["top1_error"] == 0.5


def test_the_line_of_an_epoch_tells_errors_speed_and_waiting() -> None:
    assert report(2).line(90) == (
        "epoch 2/90: train loss 2.500, val loss 2.250, top-1 error 50.0%, top-5 error 12.5%, "
        "200 images/s, data wait 2.0 s (25%)"
    )


@pytest.mark.parametrize("num_steps", [1, 3, 7, 100, 1251])
def test_without_a_terminal_an_epoch_shows_a_handful_of_lines(
    num_steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(
        title="epoch 1/2", num_steps=num_steps, first_step=0, terminal=False, line_seconds=0
    ) as shown:
        for step in range(1, num_steps + 1):
            if shown.due(step):
                shown.show(step, 1.0, 100.0, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 6
    if num_steps == 100:
        assert lines[0] == "epoch 1/2, step 25/100: loss 1.000, 100 images/s, data wait 50%"


def test_without_a_terminal_a_short_epoch_shows_no_line_of_its_own() -> None:
    with Progress(title="epoch 1/2", num_steps=8, first_step=0, terminal=False) as progress:
        assert not any(progress.due(step) for step in range(1, 9))


def test_on_a_terminal_a_bar_shows_loss_speed_and_waiting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress(title="epoch 1/2", num_steps=10, first_step=5, terminal=True) as progress:
        progress.show(8, 1.5, 100.0, 0.5)
        progress.show(10, 1.25, 100.0, 0.5)
    captured = capsys.readouterr()
    assert not captured.out
    assert "loss 1.250, 100 images/s, data wait 50%" in captured.err
