"""A timeline as a PNG or SVG: the segments as a strip, and below it the scores of the labels that win anywhere.

Wide as a phone's screen, where its letters are as large as a page's. The same entry and matplotlib give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from video_gn.errors import ConfigError
from video_gn.evaluation.prediction import UNSURE
from video_gn.files import check_place, whole_path
from video_gn.rendering.entries import Timeline, clock
from video_gn.rendering.text import default_font, drawable, fitted, font_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The hues of `overlay.COLOURS`, for white paper: blue, brown, dark green, purple, ochre, light blue.
COLOURS = ("#1d4fd0", "#a85f1f", "#135023", "#8a1a86", "#b78e26", "#25a0c6")
GREY = "#767d88"  # "unsure"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))  # of the labels that have a colour again
_HATCHES = ("", "///", "...")
_TEXT, SOFT, _GRID = "#1c2128", "#5b6470", "#d8dee4"
STYLE: Any = {
    "font.size": 11,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": _TEXT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "legend.frameon": False,
    # Ids in the SVG are hashes with a salt, which is random by default.
    "svg.hashsalt": "video_gn",
}
_METADATA: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None}}
_DPI = 200
_WIDTH_INCHES = 5.0  # 390 px of a phone: 11 points are then 12 px
_MAX_LEGEND = 12
_LEGEND_PX, _NAME_PX = 330, 11  # room for the names of a row, and their size
_MAX_POINTS = 1000  # of a line: more cannot be seen


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as png or svg, by the ending, whole or not at all; the same figure gives the same bytes."""
    import matplotlib

    with whole_path(path) as part, matplotlib.rc_context(STYLE):
        figure.savefig(part, format=path.suffix[1:], dpi=_DPI, metadata=_METADATA[path.suffix])


def check_picture(path: Path) -> None:
    """Find out before the work whether a picture can be written.

    Raises:
        ConfigError: for another ending than .png or .svg.
        DiskFullError, UnwritableError, RunError: as `video_gn.files.check_place`.
    """
    if path.suffix not in _METADATA:
        raise ConfigError(f"a timeline's picture must end in {' or '.join(_METADATA)}, got {str(path)!r}. Rename it.")
    check_place(path)


def write_picture(entry: Mapping[str, Any], path: Path) -> None:
    """Draw the timeline of an entry of `video-gn infer --every`.

    Raises:
        ConfigError, DiskFullError, UnwritableError, RunError: see `check_picture`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    check_picture(path)
    line = Timeline.of(entry)
    names = {label: drawable(label) for label in (*line.numbers, UNSURE)}
    with matplotlib.rc_context({**STYLE, "font.family": _families(names.values())}):
        figure = Figure(layout="constrained")
        strip, scores = figure.subplots(2, 1, sharex=True, height_ratios=(1, 5))
        _draw_segments(strip, line)
        _draw_scores(scores, line)
        _label_time(scores, line)
        rows = _add_legend(figure, line, names)
        figure.set_size_inches(_WIDTH_INCHES, 2.7 + 0.22 * rows)
        save_figure(figure, path)


def _families(names: Any) -> list[str]:
    """Families of the fonts that the names need, for matplotlib."""
    from matplotlib import font_manager

    found = dict.fromkeys(font_of(character) or default_font() for name in names for character in name)
    families = ["DejaVu Sans"]
    for font in found:
        if font != default_font():
            font_manager.fontManager.addfont(font)
            families.append(font_manager.get_font(str(font)).family_name)
    return families


def _style(line: Timeline, label: str) -> tuple[str, Any, str]:
    """Colour, dashes of a line, and hatches of an area."""
    if label == UNSURE:
        return GREY, "-", ""
    number = line.numbers[label]
    turn = number // len(COLOURS) % len(_DASHES)
    return COLOURS[number % len(COLOURS)], _DASHES[turn], _HATCHES[turn]


def _draw_segments(axes: Axes, line: Timeline) -> None:
    for segment in line.segments:
        start, end = (segment[f"{end}_seconds"] + line.first_frame_seconds for end in ("start", "end"))
        colour, _, hatch = _style(line, segment["label"])
        axes.axvspan(start, end, facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
    for start, end in line.gaps:
        span = start + line.first_frame_seconds, end + line.first_frame_seconds
        axes.axvspan(*span, facecolor="white", hatch="////", edgecolor=SOFT, linewidth=0)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(bottom=False)


def _draw_scores(axes: Axes, line: Timeline) -> None:
    places = {label: place for place, label in enumerate(line.numbers)}
    scores_WL = np.zeros((len(line.times), len(places)))  # 0 for labels that are not among a window's best
    for window, top in enumerate(line.top):
        for best in top:
            if best["label"] in places:
                scores_WL[window, places[best["label"]]] = best["score"]
    times = line.times + line.first_frame_seconds
    if len(times) > _MAX_POINTS:  # the highest of each part
        starts = np.arange(_MAX_POINTS) * len(times) // _MAX_POINTS
        times, scores_WL = times[starts], np.maximum.reduceat(scores_WL, starts)
    for start, _ in line.gaps:  # lines break there
        at = int(np.searchsorted(times, start + line.first_frame_seconds))
        times = np.insert(times, at, start + line.first_frame_seconds)
        scores_WL = np.insert(scores_WL, at, np.nan, axis=0)
    marker = "o" if len(line.times) == 1 else ""
    for label, place in places.items():
        colour, dashes, _ = _style(line, label)
        axes.plot(
            times, scores_WL[:, place], color=colour, linestyle=dashes, linewidth=1.6, marker=marker, clip_on=not marker
        )
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("score")


def _label_time(axes: Axes, line: Timeline) -> None:
    from matplotlib.ticker import FixedLocator

    first, last = line.first_frame_seconds, line.first_frame_seconds + line.duration_seconds
    axes.set_xlim(first, last)
    steps = (
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200),
    )
    step = next((s for s in steps if line.duration_seconds / s <= 6), 86400)
    ticks = np.round(np.arange(np.ceil(first / step - 1e-6), last / step + 1e-6) * step, 3)
    num_digits = 0 if step >= 1 else len(str(step)) - 2
    axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.xaxis.set_major_formatter(lambda seconds, _: clock(seconds) + f"{seconds % 1:.{num_digits}f}"[1:])
    axes.set_xlabel("time")


def _add_legend(figure: Figure, line: Timeline, names: Mapping[str, str]) -> int:
    """Name the colours below the axes; the number of rows."""
    from matplotlib.patches import Patch

    shown = list(line.numbers)[:_MAX_LEGEND]
    shown += [UNSURE] * any(segment["label"] == UNSURE for segment in line.segments)
    handles, widest = [], max((len(names[label]) for label in shown), default=1)
    columns = 3 if widest <= 12 else 2 if widest <= 20 else 1
    for label in shown:
        colour, _, hatch = _style(line, label)
        name = fitted(names[label], _NAME_PX, _LEGEND_PX // columns)
        handles.append(Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=name))
    more = len(line.numbers) - _MAX_LEGEND
    if more > 0:
        handles.append(Patch(facecolor="none", label=f"and {more} more"))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1.2, columnspacing=1.2)
    return -(-len(handles) // columns)
