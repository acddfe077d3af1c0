"""The report of an epoch, and when progress is shown."""

import pytest

from tests.terminals import on_terminal
from trainer.metrics import Progress, Report, duration


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
        expected = "epoch 1/2, step 25/100: loss 1.000, 100 images/s, data wait 50%, 0 s left"
        assert lines[0] == expected


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
    assert "loss 1.250, 100 images/s, data wait 50%, 0 s left" in captured.err
    assert "epoch 1/2 100%" in captured.err and "10/10" in captured.err


@pytest.mark.parametrize("columns", [0, 80, 140])
def test_all_that_progress_tells_fits_on_a_terminal_of_80_columns(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a size that nobody said (0) too; with a bar where there is room, else in fewer words."""
    now = 1000.0

    def draw() -> None:
        nonlocal now
        with Progress(
            title="epoch 12/90", num_steps=10_000, first_step=0, terminal=True, num_later=1,
            last=report(11),
        ) as progress:  # fmt: skip
            now += 3600
            progress.show(5_400, 1.25, 11_234.0, 0.05)

    monkeypatch.setattr("trainer.metrics.time.monotonic", lambda: now)
    lines = on_terminal(24 if columns else 0, columns, draw, monkeypatch)
    told = [line for line in lines if "loss 1.250" in line]
    if columns == 140:
        assert told[0].startswith("epoch 12/90  54%|█")
        assert told[0].endswith(
            "| 5400/10000, loss 1.250, last errors 50.0%/12.5%, 11,234 images/s, data wait 5%, "
            "2 h 42 min left"
        )
        assert len(told[0]) == 139
    else:
        assert told == [
            "epoch 12/90 54%, loss 1.250, errors 50.0%/12.5%, 11,234/s, wait 5%, 2 h 42 min"
        ]


def test_progress_tells_the_last_errors_and_the_time_to_the_end_of_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 5 to 8 took 30 s: 92 more take 920 s, and ten validations of 1 s each."""
    now = 1000.0
    monkeypatch.setattr("trainer.metrics.time.monotonic", lambda: now)
    with Progress(
        title="epoch 2/11", num_steps=10, first_step=5, terminal=False, num_later=9,
        last=report(1),
    ) as progress:  # fmt: skip
        now += 30
        progress.show(8, 1.5, 100.0, 0.5)
    assert capsys.readouterr().out == (
        "epoch 2/11, step 8/10: loss 1.500, last errors 50.0%/12.5%, 100 images/s, "
        "data wait 50%, 16 min left\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (3569, "59 min"), (3571, "1 h 00 min"),
        (86_000, "23 h 53 min"), (86_400, "1 d 0 h"), (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_a_time_to_wait_is_told_in_one_or_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
