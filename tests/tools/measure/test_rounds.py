"""The order of a measurement, and what becomes of a contestant that fails."""

import pytest

from tools.measure.rounds import Pass, PassError, run_rounds


class Fake:
    """A contestant that notes its turns; its n-th pass (from 0, warm-up) takes n + 1 seconds."""

    def __init__(self, name: str, turns: list[str], fails_in: int | None = None) -> None:
        self.name = name
        self._turns = turns
        self._fails_in = fails_in
        self._num_passes = 0

    def run_pass(self) -> Pass:
        number = self._num_passes
        self._num_passes += 1
        self._turns.append(self.name)
        if number == self._fails_in:
            raise PassError("ran dry")
        return Pass(num_images=100, seconds=number + 1.0)


def test_every_round_has_every_contestant_in_the_same_order() -> None:
    turns: list[str] = []
    run_rounds([Fake(name, turns) for name in "ABC"], repeats=5)
    assert "".join(turns) == "ABC" * (1 + 5)


def test_the_warm_up_does_not_count() -> None:
    outcome = run_rounds([Fake("A", [])], repeats=5)
    assert [done.seconds for done in outcome.passes["A"]] == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert outcome.passes["A"][0].images_per_second == 50.0


@pytest.mark.parametrize("fails_in", [0, 1, 5])
def test_one_that_fails_is_reported_and_left_out_and_the_rest_goes_on(fails_in: int) -> None:
    turns: list[str] = []
    lines: list[str] = []
    contestants = [Fake("A", turns), Fake("B", turns, fails_in), Fake("C", turns)]
    outcome = run_rounds(contestants, 5, lines.append)
    assert outcome.failed == {"B": "ran dry"}
    assert "B failed: ran dry" in lines
    assert {name: len(passes) for name, passes in outcome.passes.items()} == {"A": 5, "C": 5}
    assert (turns.count("A"), turns.count("B"), turns.count("C")) == (6, fails_in + 1, 6)
