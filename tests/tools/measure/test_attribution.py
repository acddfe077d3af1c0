"""Made-up times of a step: each cause is found, shares are whole, and the advice has its flag."""

import re
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import pytest

from pipeline.waits import Waits
from tools.measure.attribution import (
    ADVICE,
    CONTENTION,
    Measured,
    advise,
    attribute,
    shortest,
)
from trainer import run

FED = Measured(
    real=1.0, step=1.0, beside=1.0, waits=Waits(), gpu_decodes=False, on_gpu=False, issued=1.0
)


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


def test_the_flags_of_the_advice_are_those_of_the_commands() -> None:
    training = {option for parameter in run.main.params for option in parameter.opts}
    texts = [*ADVICE.values(), *CONTENTION.values(), advise(FED, attribute(FED), fed=True)]
    for text in texts:
        flags = set(re.findall(r"--[a-z-]+", text)) - {"--encoding"}  # of prepare_shards.py
        assert flags <= training, text
        assert flags or "--encoding" in text
