"""Curves show the reports' numbers, and mark what changed when."""

from pathlib import Path
from typing import Any

import pytest

from tests.tools.figures.run_folders import report, write_run
from tools.figures.curves import events, feeding_charts, learning_charts, waiting
from tools.figures.run_record import RunRecord, read_run, read_runs


def made(folder: Path, rates: list[float], **options: Any) -> RunRecord:
    lines = [report(i, learning_rate=rate) for i, rate in enumerate(rates, 1)]
    return read_run(write_run(folder / "run", [*lines], **options), "run")


def test_drops_lighting_and_layer_rates_are_marked_where_they_came(tmp_path: Path) -> None:
    """kriz2012 over its own 93 epochs: drops at 23, 51, 78; lighting and conv1 at 68, 72."""
    rates = [0.01 / 10 ** sum(epoch > drop for drop in (23, 51, 78)) for epoch in range(1, 94)]
    run = made(tmp_path, rates, preset="kriz2012", epochs=93)
    assert events(run) == [
        (23, "rate ÷10"), (51, "rate ÷10"), (68, "lighting off"),
        (68, run_text(run, 68)), (72, "conv1 frozen"), (78, "rate ÷10"),
    ]  # fmt: skip
    charts = learning_charts([run])
    assert [mark.x for mark in charts[0].marks] == [23, 51, 68, 68, 72, 78]


def run_text(run: RunRecord, epoch: int) -> str:
    """What the run's own settings say of conv1 at that epoch."""
    rates = run.setting("preset.training.layer_rates")
    (factor,) = [factor for when, _, factor in rates if when == epoch]
    return f"conv1 rate ×{factor:.3g}"


def test_what_has_not_come_yet_is_not_marked(tmp_path: Path) -> None:
    assert events(made(tmp_path, [0.01] * 10, preset="kriz2012", epochs=93)) == []


def test_a_rate_that_is_eased_is_not_dropped(tmp_path: Path) -> None:
    assert events(made(tmp_path, [0.08, 0.05, 0.02, 0.001])) == []  # modern: a cosine


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_charts_hold_the_reports_numbers(tmp_path: Path, num_epochs: int) -> None:
    run = made(tmp_path, [0.01] * num_epochs)
    loss, error, rate = learning_charts([run])
    assert [line.name for line in loss.lines] == ["train", "val"]
    assert loss.lines[1].points == [(i, 2.0 / i) for i in range(1, num_epochs + 1)]
    assert (error.unit, error.lines[1].points[0]) == ("%", (1.0, 0.8))
    assert rate.log and rate.lines[0].points[0] == (1.0, 0.01)
    speed, waits = feeding_charts([run])  # no fed ratio was measured
    assert speed.lines[0].points[0] == (1.0, 100.0) and waits.lines[0].points[0] == (1.0, 0.1)


def test_the_fed_ratio_is_drawn_where_it_was_measured(tmp_path: Path) -> None:
    lines = [report(1), report(2, fed_ratio=0.98), report(3, fed_ratio=0.99)]
    run = read_run(write_run(tmp_path / "run", [*lines]), "run")
    fed = feeding_charts([run])[2]
    assert fed.title == "Fed ratio" and fed.target == 0.97
    assert fed.lines[0].points == [(2, 0.98), (3, 0.99)]


def test_runs_are_overlaid_each_in_its_colour(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, [report(1), report(2)]) for name in ("one", "other")]
    loss = learning_charts(read_runs(folders))[0]
    assert [(line.name, line.colour, line.light) for line in loss.lines] == [
        ("one train", 0, True), ("one val", 0, False),
        ("other train", 1, True), ("other val", 1, False),
    ]  # fmt: skip


def test_waiting_is_told_by_cause_the_longest_first(tmp_path: Path) -> None:
    found = waiting(made(tmp_path, [0.01, 0.01]))
    assert [(one.seconds, one.share) for one in found] == [(1.0, 0.05), (0.5, 0.025), (0.5, 0.025)]
    assert found[0].cause == "for their pixels"


def test_a_run_without_reports_has_no_charts(tmp_path: Path) -> None:
    run = made(tmp_path, [])
    assert (learning_charts([run]), feeding_charts([run]), waiting(run), events(run)) == (
        [], [], [], [],
    )  # fmt: skip
