"""Axes: round numbers to mark, where they come to lie, and how numbers are written."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

PARTS_OF_DECADE = (1, 1.5, 2, 3, 5, 7)  # so close that half a decade holds two
LEAST_SHARE = 0.001  # percent that are told; fewer are "less than that"
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of values along a length of the drawing; low < high. log: in powers of ten."""

    low: float
    high: float
    start_px: float
    end_px: float  # may be less than start_px
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies; below the range, at its start."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (max(value, self.low) - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, count: int) -> list[float]:
        """Round values within the range, about `count` of them."""
        if self.log:
            return decades(self.low, self.high)
        return round_steps(self.low, self.high, count)


def round_steps(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten within low..high, `count` at most.

    whole: whole numbers only.
    """
    assert low < high and count >= 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    sizes = [step * power for step in STEPS if step * power >= rough * (1 - 1e-9)]
    step = sizes[0]
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """The powers of ten within low..high; where there is none or one, some multiples of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    within = [
        float(f"{step}e{power}") for power in range(first, last + 1) for step in PARTS_OF_DECADE
    ]
    within = [value for value in within if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    powers = [value for value in within if f"{value:e}".startswith("1.000000e")]
    return powers if len(powers) > 1 else within


def value_range(values: Iterable[float], *, from_zero: bool) -> tuple[float, float]:
    """The range that shows all finite values, never empty; from_zero: 0 is in it."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        spare = abs(high) / 2 or 1.0
        low, high = (low, high + spare) if from_zero else (low - spare, high + spare)
    return low, high


def rounded_range(low: float, high: float, count: int) -> tuple[float, float]:
    """The range grown to the next marks on either side; see `round_steps`."""
    marks = round_steps(low, high, count)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    first, last = (marks[0], marks[-1]) if marks else (low, high)
    return (
        first - step if first > low + step * 1e-9 else first,
        last + step if last < high - step * 1e-9 else last,
    )


def written(value: float | None, unit: str = "") -> str:
    """A measured number for a person: three digits; unit "%" for a fraction, else beside it."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number"
    if unit == "%":
        share = value * 100
        if share >= 0.95 or share <= 0:
            return f"{share:.1f}%"
        return f"{share:.1g}%" if share >= LEAST_SHARE else f"<{LEAST_SHARE:g}%"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    elif abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.3g}".rstrip(".")
    return f"{text} {unit}" if unit else text


def marked(value: float, unit: str = "") -> str:
    """A round number at an axis; unit "%" for a fraction, else not written."""
    if unit == "%":
        return f"{value * 100:.4g}%"
    if value and (abs(value) < 1e-4 or abs(value) >= 1e7):
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.6g}"
