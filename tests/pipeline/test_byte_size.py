"""Sizes as people write them are the bytes they mean, and nothing else is taken for a size."""

import click
import pytest
from click.testing import CliRunner

from pipeline.byte_size import ByteSize, parse_bytes, show_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("200GB", 200 * 10**9),
        ("200 gb", 200 * 10**9),
        ("1.5TB", 1_500 * 10**9),
        ("512MiB", 512 * 2**20),
        ("4k", 4_000),
        ("1", 1),
        ("123456B", 123_456),
    ],
)
def test_sizes_are_read(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "0", "0.1", "-1GB", "2PB", "1e9", "nan", "1.GB", "7x"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size; write it like 200GB"):
        parse_bytes(text)


def test_sizes_are_shown_in_the_unit_that_fits() -> None:
    sizes = {999: "999 bytes", 1000: "1.0 kB", 48_240_000_000: "48.2 GB", 10**13: "10.0 TB"}
    assert {number: show_bytes(number) for number in sizes} == sizes


def test_an_option_that_is_no_size_is_a_usage_error() -> None:
    @click.command()
    @click.option("--size", type=ByteSize(), default=7)
    def command(size: int) -> None:
        click.echo(size)

    assert CliRunner().invoke(command, ["--size", "2kB"]).output == "2000\n"
    assert CliRunner().invoke(command, []).output == "7\n"
    refused = CliRunner().invoke(command, ["--size", "lots"])
    assert refused.exit_code == 2 and "'lots' is no size" in refused.output
