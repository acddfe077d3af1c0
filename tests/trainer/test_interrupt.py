"""Signals ask, a second Ctrl-C interrupts, and the handlers of before come back."""

import os
import signal

import pytest

from trainer.interrupt import ASKING, stop_request


def test_ctrl_c_asks_and_a_second_one_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), stop_request() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal did nothing")


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM)],
)
def test_what_schedulers_and_the_kernel_send_asks(numbers: tuple[signal.Signals, ...]) -> None:
    with stop_request() as asked:
        for number in numbers:
            os.kill(os.getpid(), number)
            assert asked()


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_request():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_rank_is_not_ended_while_it_says_why_it_ends() -> None:
    before = {number: signal.getsignal(number) for number in ASKING}
    try:
        with pytest.raises(RuntimeError, match="lost"), stop_request(to_the_end=True) as asked:
            raise RuntimeError("another rank was lost")
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
