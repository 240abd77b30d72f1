"""A study's figures: error against batch size (the paper's Figure 1) and curves over training (its Figure 7).

Drawn by matplotlib without pyplot: no window, no global state, and the same bytes for the same data.
Source: Wu & He 2018 (arXiv:1803.08494), Figures 1 and 7.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.rendering.picture import SOFT, STYLE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A column of the study's table: label of the clip, batch size.
Column = tuple[str, int]

# Okabe and Ito's palette, which the colour-blind can tell apart, darkened until each colour has a contrast of at least
# 3 against white. If there are more lines than colours, dashes and marks tell them apart.
COLOURS = ("#0067a5", "#c44f00", "#00805c", "#9a4f86", "#8a6d00", "#2f8fc4", "#5b6470")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
# Pictures are shown 800 px wide, and printed: 8 inches at 200 dots per inch. The first one is also read on a telephone,
# 390 px wide: its single panel is narrower, so that its letters are larger.
_WIDTH_INCHES, _NARROW_INCHES = 8.0, 6.0
# Distance between lines as a fraction of an octave, so that error bars do not overlap.
_DODGE = 0.045
_MAX_DIRECT_LABELS = 8


@dataclass
class StudyData:
    """The data of a study's figures, by line and column; errors are in percent, missing figures are not drawn."""

    norms: tuple[str, ...]  # labels of the lines, in order; a line keeps its colour even if others are missing
    columns: tuple[Column, ...]  # (clip label, batch size), in order
    test_errors: Mapping[tuple[str, Column], Sequence[float]] = field(default_factory=dict)  # test error of each seed
    # for each seed [(epoch, mean training loss)]
    losses: Mapping[tuple[str, Column], Sequence[Sequence[tuple[int, float]]]] = field(default_factory=dict)
    # for each seed [(epoch, validation error)]
    val_errors: Mapping[tuple[str, Column], Sequence[Sequence[tuple[int, float]]]] = field(default_factory=dict)
    step_clips: int | None = None  # clips of an optimizer step, if batch sizes are only those of the statistics
    # (test error, ends of its 95% interval) over all tested videos, where each was tested once; else of seeds' errors
    intervals: Mapping[tuple[str, Column], tuple[float, float, float]] = field(default_factory=dict)

    def point(self, norm: str, column: Column) -> tuple[float, float, float] | None:
        """A test error, and the lengths of its bar below and above; None if there is none."""
        if (norm, column) in self.intervals:
            error, low, high = self.intervals[norm, column]
            return error, max(0.0, error - low), max(0.0, high - error)  # at 0 and 100% they differ by a rounding
        errors = self.test_errors.get((norm, column), ())
        return (statistics.fmean(errors), _deviation(errors), _deviation(errors)) if errors else None

    def bars(self) -> str:
        """What the bars of test errors are; "" if there are none."""
        if self.intervals:
            return "bars: 95% intervals over all test videos (Wilson)"
        most = max(map(len, self.test_errors.values()), default=0)
        return f"bars: standard deviation over {most} seeds" if most > 1 else ""

    def axis(self, size: int | None = None) -> str:
        """Label of the axis of batch sizes, or of a single one."""
        if self.step_clips is None:
            return f"batch size{'' if size is None else f' {size}'} (clips in a process)"
        if size is None:
            return f"clips in the statistics (of {self.step_clips} in a step)"
        return f"statistics of {size} of {self.step_clips} clips"

    def style(self, norm: str) -> dict[str, Any]:
        """Colour, dash and mark of a line."""
        number = self.norms.index(norm)
        return {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": _DASHES[number // len(COLOURS) % len(_DASHES)],
            "marker": _MARKS[number % len(_MARKS)],
        }


def error_figure(data: StudyData) -> Figure:
    """Test error against batch size, a panel for each clip; against the lines if there is only one size."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        clips = list(dict.fromkeys(clip for clip, _ in data.columns))
        width = _NARROW_INCHES if len(clips) == 1 else _WIDTH_INCHES
        figure = Figure(figsize=(width, 4.4), layout="constrained")
        panels = figure.subplots(1, len(clips), sharey=True, squeeze=False)[0]
        one_size = len({size for _, size in data.columns}) == 1
        for axes, clip in zip(panels, clips, strict=True):
            (_draw_by_line if one_size else _draw_by_size)(axes, data, clip)
            if len(clips) > 1:
                axes.set_title(f"clip {clip}")
        panels[0].set_ylabel("test error (%)")
        if data.bars():
            figure.supxlabel(data.bars(), fontsize=10, color=SOFT)
        if not one_size:
            _label_lines(figure, panels, data)
    return figure


def _draw_by_size(axes: Axes, data: StudyData, clip: str) -> None:
    sizes = sorted({size for _, size in data.columns}, reverse=True)
    for number, norm in enumerate(data.norms):
        points = [(size, point) for size in sizes if (point := data.point(norm, (clip, size))) is not None]
        if not points:
            continue
        shift = 2 ** (_DODGE * ((len(data.norms) - 1) / 2 - number))
        axes.errorbar(
            [size * shift for size, _ in points],
            [error for _, (error, _, _) in points],
            yerr=[[below for _, (_, below, _) in points], [above for _, (_, _, above) in points]],
            label=norm, markersize=6, linewidth=2, elinewidth=1.2, capsize=3, **data.style(norm),
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    # From large to small, as in the paper, which is about small batches.
    room = _DODGE * (len(data.norms) - 1) / 2
    axes.set_xlim(sizes[0] * 2 ** (0.2 + room), sizes[-1] / 2 ** (0.1 + room))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(data.axis())


def _draw_by_line(axes: Axes, data: StudyData, clip: str) -> None:
    size = data.columns[0][1]
    for number, norm in enumerate(data.norms):
        point = data.point(norm, (clip, size))
        if point is not None:
            error, below, above = point
            axes.errorbar(
                [number], [error], yerr=[[below], [above]], label=norm,
                markersize=7, elinewidth=1.5, capsize=4, color=COLOURS[0], marker="o", linestyle="none",
            )  # fmt: skip
    slanted = max(map(len, data.norms)) * len(data.norms) > 50
    rotation, ha = (30, "right") if slanted else (0, "center")
    axes.set_xticks(range(len(data.norms)), data.norms, rotation=rotation, ha=ha)
    axes.set_xlim(-0.5, len(data.norms) - 0.5)
    axes.grid(False, axis="x")
    axes.set_xlabel(data.axis(size))


def _label_lines(figure: Figure, panels: Sequence[Axes], data: StudyData) -> None:
    """Write each line's name beside its last point, or a legend if there are several panels or many names."""
    axes = panels[-1]
    drawn = [container for container in axes.containers if container.get_label() in data.norms]
    if len(panels) > 1 or len(data.norms) > _MAX_DIRECT_LABELS or not drawn:
        _legend(figure, panels)
        return
    low, high = axes.get_ylim()
    room = 0.06 * (high - low)
    ends = sorted((float(c.lines[0].get_ydata()[-1]), str(c.get_label())) for c in drawn)  # type: ignore[attr-defined]
    heights: list[float] = []
    for height, _ in ends:
        heights.append(max(height, heights[-1] + room) if heights else height)
    # Names were pushed upwards one by one: move them all down so that their mean stays the same.
    back = statistics.fmean(heights) - statistics.fmean(height for height, _ in ends)
    for (_, norm), height in zip(ends, heights, strict=True):
        style = data.style(norm)
        axes.annotate(
            norm, (1, height - back), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", color=style["color"], fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def curves_figure(data: StudyData) -> Figure:
    """Training loss above validation error, over epochs: a panel for each column, a line for each norm.

    A line is the mean over seeds, the band its standard deviation.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        num = len(data.columns)
        figure = Figure(figsize=(max(_WIDTH_INCHES, 2.2 * num), 6.0), layout="constrained")
        panels = figure.subplots(2, num, sharex=True, sharey="row", squeeze=False)
        several = len({clip for clip, _ in data.columns}) > 1
        for place, column in enumerate(data.columns):
            top, bottom = panels[0][place], panels[1][place]
            size = f"batch size {column[1]}" if data.step_clips is None else data.axis(column[1])
            top.set_title(f"clip {column[0]}, {size.replace('batch size', 'batch')}" if several else size)
            for norm in data.norms:
                _draw_curve(top, data, norm, data.losses.get((norm, column), ()))
                _draw_curve(bottom, data, norm, data.val_errors.get((norm, column), ()))
            bottom.set_xlabel("epoch")
        panels[0][0].set_ylabel("training loss")
        panels[0][0].set_ylim(bottom=0)
        panels[1][0].set_ylabel("validation error (%)")
        _legend(figure, panels[0])
    return figure


def _draw_curve(axes: Axes, data: StudyData, norm: str, seeds: Sequence[Sequence[tuple[int, float]]]) -> None:
    values: dict[int, list[float]] = {}
    for curve in seeds:
        for epoch, value in curve:
            values.setdefault(epoch, []).append(value)
    if not values:
        return
    epochs = sorted(values)
    means = [statistics.fmean(values[epoch]) for epoch in epochs]
    deviations = [_deviation(values[epoch]) for epoch in epochs]
    style = data.style(norm)
    # A line of one point cannot be seen without a marker.
    marker = style["marker"] if len(epochs) == 1 else None
    axes.plot(
        epochs, means, label=norm, linewidth=1.6, color=style["color"], linestyle=style["linestyle"], marker=marker
    )
    if any(deviations):
        low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
        high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        # A row has room for 84 letters; the line of an entry takes as much as 8 of them.
        columns = max(1, min(len(entries), int(84 / (max(map(len, entries)) + 8))))
        figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=columns)


def _deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value, which gets no bar."""
    return statistics.stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else 0.0


def write_figures(data: StudyData, directory: Path) -> list[Path]:
    """Write error_vs_batch (error_by_norm if there is one batch size) and curves, as png and svg.

    The same data and the same matplotlib give the same bytes.
    """
    first = "error_by_norm" if len({size for _, size in data.columns}) == 1 else "error_vs_batch"
    paths = []
    for name, figure in ((first, error_figure(data)), ("curves", curves_figure(data))):
        for suffix in ("png", "svg"):
            path = directory / f"{name}.{suffix}"
            save_figure(figure, path)
            paths.append(path)
    return paths
