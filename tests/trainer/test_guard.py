"""The losses kept on the device, and the last look before weights are saved."""

import pytest
import torch

from trainer.guard import LossRecord, require_finite

BAD = [float("nan"), float("inf"), float("-inf")]


def filled(values: list[float], check_steps: int = 3) -> LossRecord:
    record = LossRecord(check_steps)
    for value in values:
        record.add(torch.tensor(value))
    return record


def test_losses_are_read_once_in_the_order_of_their_steps() -> None:
    record = filled([1.5, 0.25, 3.0])
    assert record.read(last_step=7) == [1.5, 0.25, 3.0]
    assert record.read(last_step=7) == []


def test_a_look_is_due_after_so_many_steps_and_not_before() -> None:
    assert [filled([1.0] * n).due for n in range(5)] == [False, False, False, True, True]
    record = filled([1.0] * 3)
    record.read(3)
    assert not record.due


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_first_step_that_went_wrong_is_named(bad: float, place: int) -> None:
    losses = [1.0] * 5
    losses[place] = bad
    losses[-1] = bad  # a later one does not hide it
    with pytest.raises(FloatingPointError, match=f"loss of step {16 + place} is {bad}"):
        filled(losses).read(last_step=20)


@pytest.mark.parametrize("bad", BAD)
def test_a_tensor_with_one_bad_number_is_named(bad: float) -> None:
    good, spoilt = torch.zeros(3, 4), torch.ones(2, 5)
    require_finite({"conv1.weight": good, "fc8.weight": spoilt}, 9)
    spoilt[1, 3] = bad
    with pytest.raises(FloatingPointError, match="fc8.weight after step 9 is not finite"):
        require_finite({"conv1.weight": good, "fc8.weight": spoilt}, 9)


def test_integers_and_nothing_at_all_are_finite() -> None:
    require_finite({}, 0)
    require_finite({"norm1.num_batches_tracked": torch.tensor(3)}, 0)
