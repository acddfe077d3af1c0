"""Every second inside the iterator is charged to one stage, a GPU's own to the device."""

import time

import pytest
import torch

from pipeline.waits import WaitClock, Waits


def test_each_stage_is_charged_what_passed_before_its_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([10.0, 11.0, 13.0, 17.0, 25.0, 100.0, 116.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = WaitClock(torch.device("cpu"))
    clock.start()
    for charge in (clock.handed_over, clock.read, clock.decoded, clock.handed_over):
        charge()
    clock.start()  # what passed outside counts for nothing
    clock.read()
    waits = clock.waits()
    assert waits == Waits(
        read_wait_seconds=18.0, decode_wait_seconds=4.0, handover_wait_seconds=9.0
    )
    assert waits.data_wait_seconds == 31.0


def test_what_was_told_does_not_change_afterwards() -> None:
    clock = WaitClock(torch.device("cpu"))
    first = clock.waits()
    clock.start()
    clock.read()
    assert first == Waits() and clock.waits().read_wait_seconds > 0


def test_there_is_no_device_wait_on_a_cpu() -> None:
    clock = WaitClock(torch.device("cpu"))
    clock.before_input()
    clock.after_input()
    assert clock.waits() == Waits()


@pytest.mark.gpu
def test_a_gpu_s_stream_that_stands_still_is_seen_once_it_has_gone_on() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    device = torch.device("cuda", torch.cuda.current_device())
    clock, other = WaitClock(device), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda._sleep(1)  # type: ignore[no-untyped-call]  # loaded before it counts
    torch.cuda.synchronize()
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(other):
        cycles = 200_000_000  # about a tenth of a second
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
        ready.record(other)
    clock.before_input()
    torch.cuda.current_stream().wait_event(ready)
    clock.after_input()
    assert clock.waits().device_wait_seconds == 0  # asked for, and not waited for
    torch.cuda.synchronize()
    assert 0.02 < clock.waits().device_wait_seconds < 2
