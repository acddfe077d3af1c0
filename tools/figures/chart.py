"""A line chart as SVG, to stand in a page: axes with units, marks, values read off the points.

Colours and type sizes are the page's: every element has a class (page.css), none a style.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from tools.figures.axis import Axis, marked, round_steps, rounded_range, value_range, written

WIDTH_PX, HEIGHT_PX = 360, 220
LEFT_PX, RIGHT_PX, BOTTOM_PX = 46, 92, 36
NOTE_ROWS, NOTE_PX = 3, 13  # rows of words over the chart, where there are marks
NUM_TICKS = 4  # at the most, of y
LABEL_GAP_PX = 14  # between the baselines of two labels
MAX_DOTS = 150  # on a line that carry their values
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points by x; y may be NaN. colour: number of a run; light: drawn thin and dashed."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    light: bool = False
    label: str = ""  # at its end, before the last value


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened at an x: a rule over the chart with a word at its top."""

    x: float
    text: str
    colour: int | None = None  # of the run it belongs to; None where there is but one


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart; unit: of y, "%" for fractions. x counts epochs."""

    title: str
    unit: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    log: bool = False
    from_zero: bool = True
    target: float | None = None  # a horizontal rule

    @property
    def has_points(self) -> bool:
        """Whether there is anything to draw."""
        return any(line.points for line in self.lines)

    @property
    def top_px(self) -> int:
        """Where the plot begins, under the words on its marks."""
        return 12 + (NOTE_ROWS * NOTE_PX if self.marks else 0)

    def svg(self) -> Markup:
        """The drawing."""
        return Markup(tostring(_Drawing(self).root, encoding="unicode"))  # noqa: S704


class _Drawing:
    """A chart being drawn."""

    def __init__(self, chart: Chart) -> None:
        assert chart.has_points
        self.chart = chart
        self.x, self.y = _x_axis(chart), _y_axis(chart)
        self.root = Element("svg", {
            "viewBox": f"0 0 {WIDTH_PX} {HEIGHT_PX}", "class": "chart", "role": "img",
            "aria-label": _spoken(chart),
        })  # fmt: skip
        self._draw_grid()
        self._draw_marks()
        for line in chart.lines:
            self._draw_line(line)
        self._draw_labels()

    def _draw_grid(self) -> None:
        right = WIDTH_PX - RIGHT_PX
        for value in self.y.ticks(NUM_TICKS):
            y = self.y.place(value)
            _add(self.root, "line", "grid", x1=LEFT_PX, x2=right, y1=y, y2=y)
            text = marked(value, self.chart.unit)
            _add(self.root, "text", "tick end", text, x=LEFT_PX - 6, y=y + 4)
        for value in round_steps(self.x.low, self.x.high, 5, whole=True):
            x = self.x.place(value)
            _add(self.root, "text", "tick middle", f"{value:g}", x=x, y=HEIGHT_PX - 18)
        middle = (LEFT_PX + right) / 2
        _add(self.root, "text", "tick middle quiet", "epoch", x=middle, y=HEIGHT_PX - 4)
        if self.chart.target is not None:
            y = self.y.place(self.chart.target)
            _add(self.root, "line", "target", x1=LEFT_PX, x2=right, y1=y, y2=y)

    def _draw_marks(self) -> None:
        ends = [-math.inf] * NOTE_ROWS  # of the words in each row
        top = self.chart.top_px
        for mark in sorted(self.chart.marks, key=lambda mark: mark.x):
            if not self.x.low <= mark.x <= self.x.high:
                continue
            x = self.x.place(mark.x)
            kind = "mark" if mark.colour is None else f"mark run{mark.colour}"
            rule = _add(self.root, "line", kind, x1=x, x2=x, y1=top, y2=HEIGHT_PX - BOTTOM_PX)
            SubElement(rule, "title").text = f"epoch {mark.x:g}: {mark.text}"
            half = 3.3 * len(mark.text)
            row = next((i for i, end in enumerate(ends) if x - half > end + 4), None)
            if row is not None:  # where there is no room, the rule alone
                ends[row] = x + half
                y = top - 6 - NOTE_PX * (NOTE_ROWS - 1 - row)
                _add(self.root, "text", "note middle", mark.text, x=x, y=y)

    def _draw_line(self, line: Line) -> None:
        kind = f"run{line.colour}" + (" light" if line.light else "")
        for run in _finite_runs(line.points):
            places = [(self.x.place(x), self.y.place(y)) for x, y in run]
            if len(places) > 1:
                path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
                _add(self.root, "path", f"line {kind}", d=path)
            else:
                _add(self.root, "circle", f"point {kind}", cx=places[0][0], cy=places[0][1], r=3)
        every = -(-len(line.points) // MAX_DOTS) if line.points else 1
        for i, (x, y) in enumerate(line.points):
            if math.isfinite(y) and i % every == 0:
                dot = _add(
                    self.root, "circle", f"dot {kind}", cx=self.x.place(x), cy=self.y.place(y), r=5
                )
            elif not math.isfinite(y):
                place = {"x": self.x.place(x), "y": HEIGHT_PX - BOTTOM_PX - 3}
                dot = _add(self.root, "text", f"bad middle {kind}", "×", **place)
            else:
                continue
            told = f"{line.name}, epoch {x:g}: {written(y, self.chart.unit)}"
            SubElement(dot, "title").text = told

    def _draw_labels(self) -> None:
        """The last values, beside the ends of their lines and moved apart."""
        wanted = []
        for line in self.chart.lines:
            finite = [point for point in line.points if math.isfinite(point[1])]
            if finite:
                unit = "%" if self.chart.unit == "%" else ""
                text = f"{line.label} {written(finite[-1][1], unit)}".strip()
                wanted.append((self.y.place(finite[-1][1]), line, text))
        if len(wanted) > 6:
            return
        bottom = HEIGHT_PX - BOTTOM_PX
        heights = spread([y for y, *_ in wanted], LABEL_GAP_PX, self.chart.top_px, bottom)
        for y, (_, line, text) in zip(heights, wanted, strict=True):
            x = WIDTH_PX - RIGHT_PX + 7
            _add(self.root, "text", f"label run{line.colour}", text, x=x, y=y + 4)


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights at least `gap` apart in the order given ones have, as near them as a push allows.

    Within low..high where they fit.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    floor = low
    for i in order:
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def _x_axis(chart: Chart) -> Axis:
    values = [x for line in chart.lines for x, _ in line.points]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    return Axis(low=low, high=high, start_px=LEFT_PX, end_px=WIDTH_PX - RIGHT_PX)


def _y_axis(chart: Chart) -> Axis:
    values = [y for line in chart.lines for _, y in line.points]
    values += [] if chart.target is None else [chart.target]
    start, end = HEIGHT_PX - BOTTOM_PX, chart.top_px
    positive = [value for value in values if math.isfinite(value) and value > 0]
    if chart.log and positive:
        low, high = min(positive), max(positive)
        return Axis(low=low / 1.5, high=high * 1.5, start_px=start, end_px=end, log=True)
    low, high = rounded_range(*value_range(values, from_zero=chart.from_zero), NUM_TICKS)
    return Axis(low=low, high=high, start_px=start, end_px=end)


def _finite_runs(points: Sequence[Point]) -> Iterator[list[Point]]:
    """The points in runs between which some are not numbers."""
    run: list[Point] = []
    for point in points:
        if math.isfinite(point[1]):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _spoken(chart: Chart) -> str:
    ends = []
    for line in chart.lines:
        finite = [y for _, y in line.points if math.isfinite(y)]
        if finite:
            first, last = written(finite[0], chart.unit), written(finite[-1], chart.unit)
            ends.append(f"{line.name} from {first} to {last}")
    return f"{chart.title} by epoch: {'; '.join(ends) or 'no numbers'}"


def _add(parent: Element, tag: str, kind: str, text: str = "", **values: float | str) -> Element:
    plain = {
        key: value if isinstance(value, str) else f"{value:.1f}" for key, value in values.items()
    }
    element = SubElement(parent, tag, {"class": kind, **plain})
    element.text = text or None
    return element
