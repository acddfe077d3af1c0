"""What a step has to do at least, and what share of a device's ceilings a speed is."""

import pytest
import torch

from tools.measure.roofline import Ceilings, Work, measure_ceilings, work_of
from trainer.presets import find_preset


def test_the_papers_network_takes_the_products_that_are_known_of_it() -> None:
    """724,406,816 multiply-adds forward, of which conv1's 105,415,200 have no input gradient."""
    work = work_of(find_preset("paper"), 1000)
    assert work.multiply_adds_of_image == 3 * 724_406_816 - 105_415_200
    assert work.bytes_of_step == 34 * 60_965_224


def test_shares_are_of_the_ceilings_and_ideal_is_one_after_the_other() -> None:
    work = Work(multiply_adds_of_image=2e9, bytes_of_image=1e6, bytes_of_step=1e9)
    ceilings = Ceilings(multiply_adds=4e14, bytes=4e12)
    shares = work.shares(ceilings, images_per_second=1e5, batch_size=1000)
    assert shares == pytest.approx({"matrix": 0.5, "memory": 0.05, "ideal": 0.55})


def test_ceilings_are_measured_on_whatever_device_is_there() -> None:
    found = measure_ceilings(torch.device("cpu"), side=64, copy_bytes=1 << 16)
    assert found.multiply_adds > 0 and found.bytes > 0
