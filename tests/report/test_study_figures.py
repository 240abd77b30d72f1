"""A study's pictures hold the right lines, and the same data give the same bytes."""

import math
import statistics

import pytest

from video_gn.report.study_figures import StudyData, curves_figure, error_figure, write_figures

COLUMNS = (("16x2", 8), ("16x2", 2))
DATA = StudyData(
    ("BN", "GN"),
    COLUMNS,
    {("BN", COLUMNS[0]): [10.0, 14.0], ("BN", COLUMNS[1]): [30.0, 36.0], ("GN", COLUMNS[0]): [11.0]},
    {("BN", COLUMNS[0]): [[(1, 2.0), (2, 1.0)], [(1, 4.0), (2, 1.0)]]},
    {("BN", COLUMNS[0]): [[(2, 50.0)], [(2, 40.0)]]},
)


def test_error_against_batch_size():
    figure = error_figure(DATA)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] > axes.get_xlim()[1], "from large to small"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "2"]
    bn, gn = axes.containers
    assert (bn.get_label(), gn.get_label()) == ("BN", "GN")
    assert [round(x) for x in bn.lines[0].get_xdata()] == [8, 2]
    assert list(bn.lines[0].get_ydata()) == [12.0, 33.0]
    bars = [segment[:, 1].tolist() for segment in bn.lines[2][0].get_segments()]
    for bar, mean, values in zip(bars, (12.0, 33.0), ([10, 14], [30, 36]), strict=True):
        assert bar == pytest.approx([mean - statistics.stdev(values), mean + statistics.stdev(values)])
    assert list(gn.lines[0].get_ydata()) == [11.0]
    assert {text.get_text() for text in axes.texts} == {"BN", "GN"}


def test_the_bars_say_what_they_are():
    figure = error_figure(DATA)
    assert figure.get_supxlabel() == "bars: standard deviation over 2 seeds"
    once = StudyData(("BN",), COLUMNS, DATA.test_errors, intervals={("BN", COLUMNS[0]): (12.0, 9.0, 17.0)})
    figure = error_figure(once)
    assert figure.get_supxlabel() == "bars: 95% intervals over all test videos (Wilson)"
    assert figure.axes[0].containers[0].lines[2][0].get_segments()[0][:, 1].tolist() == [9.0, 17.0]
    single = StudyData(("BN",), COLUMNS, {("BN", COLUMNS[0]): [12.0]})
    assert error_figure(single).get_supxlabel() == ""


def test_curves():
    figure = curves_figure(DATA)
    top, bottom = figure.axes[0], figure.axes[2]
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes[:2]] == ["batch size 8", "batch size 2"]
    (line,) = top.lines
    assert (line.get_label(), list(line.get_xdata()), list(line.get_ydata())) == ("BN", [1, 2], [3.0, 1.0])
    band = top.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(1.0) and band[:, 1].max() == pytest.approx(3 + math.sqrt(2))
    assert list(bottom.lines[0].get_ydata()) == [45.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["BN"]


def test_one_batch_size_is_drawn_by_line_and_many_lines_in_a_legend(tmp_path):
    column = ("16x2", 8)
    data = StudyData(("G=4", "G=2"), (column,), {("G=4", column): [10.0, 12.0], ("G=2", column): [20.0]})
    (axes,) = error_figure(data).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["G=4", "G=2"]
    assert [container.lines[0].get_ydata()[0] for container in axes.containers] == [11.0, 20.0]
    assert next(path.name for path in write_figures(data, tmp_path)) == "error_by_norm.png"
    clips = StudyData(("BN",), (*COLUMNS, ("32x2", 2)), {("BN", column): [1.0] for column in COLUMNS})
    figure = error_figure(clips)
    assert [axes.get_title() for axes in figure.axes] == ["clip 16x2", "clip 32x2"]
    assert figure.legends[0].get_texts()[0].get_text() == "BN"
    many = StudyData(tuple(f"N{i}" for i in range(14)), COLUMNS)
    styles = [many.style(norm) for norm in many.norms]
    assert len({(s["color"], s["linestyle"]) for s in styles}) == 14
    assert not error_figure(many).legends, "nothing to draw is no failure"


def test_the_same_data_give_the_same_bytes(tmp_path):
    one, two = (write_figures(DATA, tmp_path / name) for name in "ab")
    assert [path.name for path in one] == ["error_vs_batch.png", "error_vs_batch.svg", "curves.png", "curves.svg"]
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert b"<dc:date>" not in one[1].read_bytes()
