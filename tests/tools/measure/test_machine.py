"""The facts of the machine: what they are read from, and that none makes a measurement fail."""

import json
from pathlib import Path

import pytest

from tools.measure.machine import cpu_model, describe_machine

FACTS = {
    "cpu", "cores", "memory_bytes", "gpu", "os", "python", "versions", "date_utc", "commit",
    "load_average", "clocks", "drive",
}  # fmt: skip


@pytest.mark.parametrize(
    "cpu_info, expected",
    [
        ("processor\t: 0\nmodel name\t: Fast 9000 @ 3 GHz\nflags\t: a\n", "Fast 9000 @ 3 GHz"),
        ("model name\t: First\n\nmodel name\t: Second\n", "First"),
        ("processor\t: 0\nModel\t\t: A small board\n", "A small board"),
    ],
)
def test_the_processor_is_named_as_the_kernel_names_it(cpu_info: str, expected: str) -> None:
    assert cpu_model(cpu_info) == expected


def test_the_facts_are_frozen_and_fit_into_json(tmp_path: Path) -> None:
    """`tmp_path` is no checkout, so there is no commit; an unknown package has no version."""
    facts = describe_machine(tmp_path, ["no-such-package"])
    assert set(json.loads(json.dumps(facts))) == FACTS
    assert set(facts["versions"]) == {
        "torch", "numpy", "simplejpeg", "pillow", "no-such-package", "dali",
    }  # fmt: skip
    assert facts["versions"]["no-such-package"] is None
    assert facts["versions"]["numpy"] is not None
    assert facts["commit"] is None
    assert facts["cores"] >= 1
