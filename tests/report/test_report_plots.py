import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.report import plots
from video_gn.report.plots import Axis, Curve, line_chart


def test_ticks():
    assert plots.nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert plots.nice_ticks(0.13, 0.61) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    assert plots.nice_ticks(-3, 3, whole=True) == [-2, 0, 2]
    assert plots.nice_ticks(1, 2, whole=True) == [1, 2]
    assert plots.nice_ticks(5, 5) == [5]
    assert plots.log_ticks(1e-4, 1e-1) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert plots.log_ticks(1e-20, 1e-1) == pytest.approx([10.0**e for e in range(-20, 0, 2)])
    assert plots.log_ticks(0.9, 12) == pytest.approx([1, 2, 5, 10])


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.0, 0.1, "0"),
        (0.25, 0.05, "0.25"),
        (0.5, 0.25, "0.5"),
        (20.0, 20.0, "20"),
        (1500.0, 500.0, "1,500"),
        (20000.0, 20000.0, "20k"),
        (12500.0, 2500.0, "12.5k"),
        (20010.0, 2.0, "20,010"),
        (3e6, 1e6, "3M"),
        (2.5e6, 5e5, "2.5M"),
        (1e-5, 0.0, "1e-5"),
        (0.0002, 0.0001, "0.0002"),
        (-0.5, 0.5, "-0.5"),
        (0.01, 0.0, "0.01"),
    ],
)
def test_numbers_of_ticks(value, step, text):
    assert plots.format_number(value, step) == text


def test_thinning_keeps_extremes_ends_and_gaps():
    rng = np.random.default_rng(0)
    x, y = np.arange(40000), rng.normal(size=40000)
    y[12345], y[777], y[30000] = 99.0, -99.0, math.nan
    thin_x, thin_y = plots.thin(x, y, 100)
    assert len(thin_x) <= 500
    assert (np.diff(thin_x) > 0).all()
    assert {0, 39999, 12345, 777, 30000} <= set(thin_x.tolist())
    np.testing.assert_array_equal(y[thin_x], thin_y)
    short = plots.thin(x[:300], y[:300], 100)
    np.testing.assert_array_equal(short[0], x[:300])


def numbers_of(path):
    return [float(word) for word in path.replace("M", " ").replace("L", " ").split()]


VALUES = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None)
@given(
    st.lists(VALUES, min_size=1, max_size=40),
    st.sampled_from(["number", "percent", "log"]),
    st.sampled_from(["line", "faint", "dots"]),
)
def test_any_values_make_a_chart_with_finite_places(values, kind, style):
    curve = Curve("<a>", np.arange(len(values)), np.array(values), 1, style)
    chart = line_chart('"t"', [curve], x=Axis("x", whole=True), y=Axis("y", kind))
    figure = ElementTree.fromstring(chart)
    # No float32 is beyond 1e60; what is counts as not finite.
    drawn = any(abs(v) < 1e60 and (kind != "log" or v > 1e-60) for v in values)
    assert ("No finite value" in chart) == (not drawn)
    for element in figure.iter():
        for name in ("x", "y", "cx", "cy"):
            if name in element.attrib:
                assert math.isfinite(float(element.attrib[name]))
    for path in figure.iter("path"):
        if path.attrib["d"].startswith("M") and not set("HVv") & set(path.attrib["d"]):
            assert all(math.isfinite(number) for number in numbers_of(path.attrib["d"]))


def test_a_gap_breaks_the_line_and_a_lone_point_is_a_dot():
    y = np.array([1.0, 2.0, math.nan, 3.0, math.nan, 1.0, 2.0])
    chart = line_chart("t", [Curve("c", np.arange(7), y, 1)], x=Axis("x"), y=Axis("y"))
    figure = ElementTree.fromstring(chart)
    line = next(p for p in figure.iter("path") if p.attrib["d"].count("M") == 3)
    assert line.attrib["d"].count("L") == 2
    assert [c.find("title").text for c in figure.iter("circle")] == ["x 3: c 3"]


def test_places_in_a_chart():
    curve = Curve("c", np.array([0, 10]), np.array([0.0, 1.0]), 1)
    chart = line_chart("t", [curve], x=Axis("x"), y=Axis("y", limits=(0.0, 1.0)))
    line = ElementTree.fromstring(chart).findall(".//g/path")[0]
    # left 66, right 540 - 12, bottom 290 - 42, top 10
    assert line.attrib["d"] == "M66.0 248.0L528.0 10.0"


def test_peaks_of_raw_values_do_not_stretch_the_axis():
    y = np.ones(1000)
    y[::2] = 2.0
    y[500] = 500.0
    chart = line_chart("t", [Curve("c", np.arange(1000), y, 1, "faint")], x=Axis("x"), y=Axis("y"))
    assert "Above the frame: 1 raw value, up to 500." in chart


def test_dots_tell_their_values():
    hints = ["step 10, epoch 1", "step 20, epoch 2"]
    curve = Curve("top-1", np.array([10, 20]), np.array([0.25, 0.5]), 3, "dots", hints=hints)
    chart = line_chart("t", [curve], x=Axis("step"), y=Axis("a", "percent"))
    assert "<title>step 10, epoch 1: top-1 25.0%</title>" in chart
    assert "<title>step 20, epoch 2: top-1 50.0%</title>" in chart
