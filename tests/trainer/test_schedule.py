"""The decisions of the schedules, from made-up steps and error curves."""

import math

import pytest

from trainer.override import override
from trainer.preset import Preset
from trainer.presets import KRIZ2012, MODERN, PAPER
from trainer.schedule import Cosine, Plateau, Steps, build_schedule


def test_cosine_warms_up_linearly_and_ends_near_zero() -> None:
    schedule = Cosine(peak=0.8, warmup_steps=4, num_steps=104)
    assert [schedule.rate(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert schedule.rate(54) == pytest.approx(0.4)
    assert schedule.rate(29) == pytest.approx(0.4 * (1 + math.cos(math.pi / 4)))
    assert 0 < schedule.rate(103) < 0.001
    rates = [schedule.rate(step) for step in range(4, 104)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("epochs", "warmup_steps"), [(90, 500), (20, 500), (8, 200), (1, 25)])
def test_warm_up_takes_at_most_a_quarter_of_the_run(epochs: int, warmup_steps: int) -> None:
    schedule = build_schedule(override(MODERN, {"epochs": epochs}), 100)
    assert isinstance(schedule, Cosine)
    assert (schedule.warmup_steps, schedule.num_steps) == (warmup_steps, epochs * 100)


def test_a_run_of_a_single_step_has_a_rate() -> None:
    assert build_schedule(override(MODERN, {"epochs": 1}), 1).rate(0) == 0.08


def plateau_rates(errors: list[float], patience: int = 2) -> list[float]:
    """The rate in force after each of the errors."""
    schedule = Plateau(start=1.0, factor=10.0, num_drops=3, patience=patience)
    rates = []
    for error in errors:
        schedule.observe(error)
        rates.append(schedule.rate(0))
    return rates


def test_plateau_waits_while_the_error_falls() -> None:
    assert plateau_rates([0.9 - 0.01 * i for i in range(20)]) == [1.0] * 20


def test_plateau_drops_when_the_best_error_was_not_beaten_for_its_patience() -> None:
    errors = [0.9, 0.8, 0.85, 0.7, 0.7, 0.75, 0.72, 0.6, 0.61]
    assert plateau_rates(errors) == [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]


def test_plateau_drops_three_times_at_most() -> None:
    assert plateau_rates([0.5] * 12)[-1] == pytest.approx(1e-3)
    assert len(set(plateau_rates([0.5] * 12))) == 4


@pytest.mark.parametrize("stop", range(9))
def test_plateau_goes_on_from_its_saved_state(stop: int) -> None:
    errors = [0.9, 0.8, 0.85, 0.7, 0.7, 0.75, 0.72, 0.71, 0.71]
    first = Plateau(start=1.0, factor=10.0, num_drops=3, patience=2)
    for error in errors[:stop]:
        first.observe(error)
    second = Plateau(start=1.0, factor=10.0, num_drops=3, patience=2)
    second.load_state_dict(first.state_dict())
    rates = []
    for error in errors[stop:]:
        second.observe(error)
        rates.append(second.rate(0))
    assert rates == plateau_rates(errors)[stop:]


def test_the_paper_gets_its_plateau() -> None:
    schedule = build_schedule(PAPER, 100)
    assert isinstance(schedule, Plateau) and schedule.rate(12345) == 0.01
    for _ in range(6):  # the first is the best so far, five more are not below it
        schedule.observe(0.5)
    assert schedule.rate(0) == pytest.approx(0.001)


def test_kriz2012_drops_at_the_first_step_after_its_epochs() -> None:
    schedule = build_schedule(KRIZ2012, 7)
    assert isinstance(schedule, Steps)
    rates = [schedule.rate(step) for step in range(93 * 7)]
    expected = [(23, 1e-2), (51 - 23, 1e-3), (78 - 51, 1e-4), (93 - 78, 1e-5)]
    assert rates == pytest.approx([rate for epochs, rate in expected for _ in range(epochs * 7)])


def test_two_drops_at_one_epoch_are_two() -> None:
    schedule = Steps(start=1.0, factor=10.0, drop_epochs=(1, 2, 2), steps_per_epoch=1)
    assert [schedule.rate(step) for step in range(4)] == pytest.approx([1, 0.1, 1e-3, 1e-3])


@pytest.mark.parametrize("preset", [KRIZ2012, MODERN], ids=lambda preset: str(preset.name))
def test_an_error_changes_nothing_in_a_fixed_schedule(preset: Preset) -> None:
    schedule, other = build_schedule(preset, 10), build_schedule(preset, 10)
    for error in (0.9, 0.9, 0.5, 0.7) * 5:
        schedule.observe(error)
    other.load_state_dict(schedule.state_dict())
    assert other.rate(500) == schedule.rate(500) == build_schedule(preset, 10).rate(500)
