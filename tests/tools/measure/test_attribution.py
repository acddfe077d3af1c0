"""Made-up times of a step: each cause is found, shares are whole, and the advice has its flag."""

import re
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import pytest

from pipeline.waits import Waits
from tools.measure.attribution import Measured, advise, attribute, remedy, shortest
from trainer import run

FED = Measured(
    real=1.0, step=1.0, beside=1.0, waits=Waits(), gpu_decodes=False, on_gpu=False, raw=False,
    issued=1.0,
)  # fmt: skip


def waits(**seconds: float) -> Waits:
    return Waits(**{f"{name}_wait_seconds": value for name, value in seconds.items()})


def short(**measured: Any) -> Measured:
    return replace(FED, real=2.0, **measured)


@pytest.mark.parametrize(
    ("measured", "cause"),
    [
        (short(waits=waits(read=0.9, decode=0.1)), "storage_read"),
        (short(waits=waits(decode=0.9, read=0.1)), "host_decode"),
        (short(waits=waits(decode=0.9), gpu_decodes=True, on_gpu=True), "device_decode"),
        (short(waits=waits(device=0.9), gpu_decodes=True, on_gpu=True), "device_decode"),
        (short(waits=waits(device=0.9), on_gpu=True), "hand_over"),
        (short(waits=waits(handover=0.9)), "hand_over"),
        (short(beside=1.9), "contention"),
        (short(beside=1.9, gpu_decodes=True, on_gpu=True), "contention"),
        (short(waits=waits(decode=0.1)), "python"),
        (short(beside=None, waits=waits(decode=1.0)), "host_decode"),
    ],
)
def test_what_costs_most_is_named_with_its_resource(measured: Measured, cause: str) -> None:
    shares = attribute(measured)
    assert shares.step == pytest.approx(0.5) and getattr(shares, cause) >= 0.4
    assert shortest(shares) == cause
    told = advise(measured, shares, fed=False)
    assert f" short ({getattr(shares, cause):.1%} of the time): " in told
    assert "\n" not in told


def test_what_was_not_measured_is_not_charged_to_the_interpreter_alone() -> None:
    """Without a decoder replayed beside the step, what it slows is not told from Python's work."""
    known, unknown = short(waits=waits(decode=0.1)), short(beside=None, waits=waits(decode=0.1))
    told = [advise(measured, attribute(measured), fed=False) for measured in (known, unknown)]
    assert told[0].startswith("the interpreter is short (45.0% of the time): ")
    assert told[1].startswith("the interpreter or the cores are short (45.0% of the time): ")


def test_decoding_that_slows_the_step_is_told_from_decoding_that_is_too_slow() -> None:
    """The same shortfall, the same wait: what the step loses beside the decoder is contention."""
    starved = attribute(short(waits=waits(decode=1.0), beside=1.0))
    crowded = attribute(short(waits=waits(decode=1.0), beside=1.75))
    assert (starved.host_decode, starved.contention) == pytest.approx((0.5, 0.0))
    assert (crowded.host_decode, crowded.contention) == pytest.approx((0.125, 0.375))


def test_a_wait_of_the_host_that_costs_the_device_nothing_is_not_charged() -> None:
    shares = attribute(replace(FED, waits=waits(decode=0.8), on_gpu=True))
    assert shares.step == 1.0 and sum(asdict(shares).values()) == 1.0
    assert shortest(shares) == "step"


def test_shares_are_whole_and_never_negative_whatever_was_measured() -> None:
    for real, beside, read, decode in product((0.5, 1, 3), (None, 0.2, 1, 9), (0, 1), (0, 5)):
        shares = attribute(
            replace(FED, real=real, beside=beside, waits=waits(read=read, decode=decode))
        )
        assert sum(asdict(shares).values()) == pytest.approx(1)
        assert min(asdict(shares).values()) >= 0


@pytest.mark.parametrize(
    ("measured", "told"),
    [
        (FED, "fed: the step itself is the limit; a faster device"),
        (replace(FED, on_gpu=True, issued=0.3), "fed: the step itself is the limit; a faster"),
        (replace(FED, on_gpu=True, issued=0.99), "and in it the host"),
    ],
)
def test_where_it_is_fed_the_step_is_the_limit(measured: Measured, told: str) -> None:
    assert told in advise(measured, attribute(measured), fed=True)


CAUSES = ("storage_read", "host_decode", "device_decode", "contention", "hand_over", "python")


@pytest.mark.parametrize("cause", CAUSES)
def test_the_flags_of_the_advice_are_those_of_the_commands(cause: str) -> None:
    training = {option for parameter in run.main.params for option in parameter.opts}
    for gpu_decodes, on_gpu, raw in product((False, True), repeat=3):
        text = remedy(cause, gpu_decodes=gpu_decodes, on_gpu=on_gpu, raw=raw)
        flags = set(re.findall(r"--[a-z-]+", text)) - {"--encoding"}  # of prepare_shards.py
        assert flags <= training, text
        assert flags or "--encoding" in text


def test_no_advice_is_to_do_what_is_done_or_cannot_be() -> None:
    for cause, gpu_decodes, on_gpu in product(CAUSES, (False, True), (False, True)):
        text = remedy(cause, gpu_decodes=gpu_decodes, on_gpu=on_gpu, raw=True)
        assert "raw shards" not in text and "dali-gpu" not in text
    for on_gpu, gpu_decodes in ((False, False), (True, False), (True, True)):
        text = remedy("host_decode", gpu_decodes=gpu_decodes, on_gpu=on_gpu, raw=False)
        assert ("dali-gpu" in text) == (on_gpu and not gpu_decodes) and "raw shards" in text
    assert "dali-cpu" in remedy("contention", gpu_decodes=True, on_gpu=True, raw=True)
    assert "dali-cpu" not in remedy("contention", gpu_decodes=False, on_gpu=True, raw=False)
