"""A chart shows every number where it belongs, and says where there is none."""

import math
from xml.etree import ElementTree

import pytest

from tools.figures.chart import Chart, Line, Mark, spread

NAN = math.nan


def drawn(**options: object) -> ElementTree.Element:
    chart = Chart(**{"title": "Loss", "unit": "nats", **options})  # type: ignore[arg-type]
    return ElementTree.fromstring(chart.svg())


def texts(svg: ElementTree.Element, kind: str) -> list[str]:
    return [e.text or "" for e in svg.iter("text") if kind in e.attrib["class"].split()]


def titles(svg: ElementTree.Element) -> list[str]:
    return [e.text or "" for e in svg.iter("title")]


def test_points_lie_in_proportion_and_tell_their_values() -> None:
    svg = drawn(lines=[Line(name="val", points=[(1, 0.0), (2, 1.0), (3, 4.0)], label="val")])
    dots = [e for e in svg.iter("circle") if "dot" in e.attrib["class"]]
    x1, x2, x3 = (float(dot.attrib["cx"]) for dot in dots)
    y1, y2, y3 = (float(dot.attrib["cy"]) for dot in dots)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert (y1 - y2) * 4 == pytest.approx(y1 - y3, abs=0.5)
    assert titles(svg) == [
        "val, epoch 1: 0.00 nats", "val, epoch 2: 1.00 nats", "val, epoch 3: 4.00 nats",
    ]  # fmt: skip
    assert texts(svg, "label") == ["val 4.00"]
    assert svg.attrib["aria-label"] == "Loss by epoch: val from 0.00 nats to 4.00 nats"


def test_one_epoch_is_a_point() -> None:
    svg = drawn(lines=[Line(name="val", points=[(1, 2.5)])])
    assert len([e for e in svg.iter("circle") if "point" in e.attrib["class"]]) == 1
    assert not list(svg.iter("path"))


def test_a_line_breaks_where_there_is_no_number_and_says_so() -> None:
    points = [(1, 1.0), (2, 1.0), (3, NAN), (4, 1.0), (5, 1.0)]
    svg = drawn(lines=[Line(name="val", points=points)])
    assert len(list(svg.iter("path"))) == 2
    assert texts(svg, "bad") == ["×"]
    assert "val, epoch 3: not a number" in titles(svg)


def test_a_line_without_any_number_is_drawn_as_such() -> None:
    svg = drawn(lines=[Line(name="val", points=[(1, NAN), (2, math.inf)])])
    assert texts(svg, "bad") == ["×", "×"] and not list(svg.iter("path"))
    assert svg.attrib["aria-label"] == "Loss by epoch: no numbers"


def test_marks_are_named_and_those_past_the_end_are_left_out() -> None:
    marks = [Mark(x=2, text="rate ÷10"), Mark(x=2, text="lighting off"), Mark(x=9, text="never")]
    svg = drawn(lines=[Line(name="val", points=[(1, 1.0), (3, 2.0)])], marks=marks)
    assert texts(svg, "note") == ["rate ÷10", "lighting off"]
    heights = [e.attrib["y"] for e in svg.iter("text") if "note" in e.attrib["class"]]
    assert len(set(heights)) == 2  # one above the other
    assert "epoch 2: rate ÷10" in titles(svg)


def test_names_are_text_whatever_is_in_them() -> None:
    name = '<script>alert("é & ü")</script>'
    svg = drawn(lines=[Line(name=name, points=[(1, 1.0), (2, 2.0)], label=name)])
    assert texts(svg, "label") == [f"{name} 2.00"]
    assert not list(svg.iter("script"))


def test_a_log_axis_shows_decades() -> None:
    svg = drawn(lines=[Line(name="", points=[(1, 0.1), (2, 0.001)])], log=True, unit="")
    assert texts(svg, "end") == ["0.001", "0.01", "0.1"]


def test_long_runs_carry_a_bounded_number_of_dots() -> None:
    svg = drawn(lines=[Line(name="", points=[(float(x), 1.0) for x in range(10_000)])])
    assert len(list(svg.iter("circle"))) <= 150


@pytest.mark.parametrize("heights", [[5, 5, 5], [0, 100], [99, 98, 97, 96], [50, 3, 51]])
def test_labels_are_moved_apart_in_their_order_and_stay_inside(heights: list[float]) -> None:
    placed = spread(heights, 14, 0, 100)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    inorder = [placed[i] for i in order]
    assert all(b - a >= 14 - 1e-9 for a, b in zip(inorder, inorder[1:]))
    assert min(placed) >= 0 and max(placed) <= 100
