"""Numbers of bytes as people write and read them: 200GB."""

import re

import click

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes from 200GB, 1.5 TB, 512MiB or 1000000 (kB is 1,000 bytes, KiB 1,024).

    ValueError where the text is none of these or less than one byte.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    num_bytes = 0
    if found:
        num_bytes = int(float(found[1]) * {**UNITS, **BINARY_UNITS}[found[2] or ""])
    if num_bytes < 1:
        raise ValueError(f"{text!r} is no size; write it like 200GB, 1.5TB or 512MiB")
    return num_bytes


def show_bytes(num_bytes: int) -> str:
    """The size in the largest decimal unit that leaves a number over one: 31.4 GB."""
    for unit in ("T", "G", "M", "k"):
        if num_bytes >= UNITS[unit.upper()]:
            return f"{num_bytes / UNITS[unit.upper()]:,.1f} {unit}B"
    return f"{num_bytes} bytes"


class ByteSize(click.ParamType[int]):
    """A command-line option that is a number of bytes, like 200GB."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        """The bytes; a usage error where it is no size."""
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, context)
