"""Line charts as SVG, without scripts. Colours are CSS classes c1 to c4, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from video_gn.report.text import esc, percent
from video_gn.shown import count

# Width in px by class: a chart takes half the page, or all of it; then a narrow one replaces it on a phone.
_WIDTHS = {"half": {"": 540}, "full": {"wide": 1098, "narrow": 540}}
_HEIGHT = 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 10, 42
# More points than pixels cannot be seen: a run of 400,000 steps has 40,000 rows.
_MAX_BUCKETS = 400
_MAX_DOTS = 150
# Larger than any float32, and small enough that the arithmetic of axes stays within float64.
_MAX_SIZE = 1e60


@dataclass(frozen=True)
class Curve:
    """One curve of a chart."""

    label: str  # text of the legend
    x: np.ndarray  # (n,), rising
    y: np.ndarray  # (n,); values that are not finite leave a gap
    color: int  # 1 to 4, or 0 for that of notes
    # "line"; "faint", a thin line of raw values; "dots", a line with a dot for each point, whose tip gives its values
    style: Literal["line", "faint", "dots"] = "line"
    dashed: bool = False  # whether the line is dashed, so that curves differ in more than colour
    shows_last: bool = True  # whether the legend gives the last value
    hints: Sequence[str] = ()  # the beginning of each dot's tip; without them, tips begin with the value of x


def line_of(place: int) -> dict[str, Any]:
    """Colour of the line of so many-th of several runs, and whether it is dashed, as arguments of a `Curve`."""
    return {"color": 1 + place % 4, "dashed": place >= 4}


@dataclass(frozen=True)
class Axis:
    """One axis."""

    label: str  # text with the unit
    kind: Literal["number", "percent", "log"] = "number"  # "number", "percent" (of fractions) or "log"
    limits: tuple[float, float] | None = None  # lowest and highest value; None takes them from the curves
    whole: bool = False  # whether ticks are at whole numbers only


def nice_ticks(low: float, high: float, target: int = 5, *, whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high], about `target` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], at most 10; if there are fewer than three, also 2 and 5 times these."""
    exponents = range(math.floor(math.log10(low) - 1e-9), math.ceil(math.log10(high) + 1e-9) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) >= 3:
            break
    return ticks[:: -(-len(ticks) // 10)] if ticks else []


def format_number(value: float, step: float = 0.0) -> str:
    """Text of a tick: 0.25, 1,500, 20k, 3M, 1e-5; `step`, the distance of ticks, sets the number of decimals."""
    size = abs(value)
    if size < 1e-12:
        return "0"
    for unit, suffix in ((1e6, "M"), (1e4, "k")):
        divisor = 1e3 if suffix == "k" else unit
        if size >= unit and (step == 0 or step >= divisor / 10):
            return f"{value / divisor:.4g}{suffix}"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    if step <= 0:
        return f"{value:,.4g}" if size < 1000 else f"{value:,.0f}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


class _Scale:
    """Maps values of an axis to pixels; holds its ticks."""

    def __init__(self, axis: Axis, values: np.ndarray, pixels: tuple[float, float]) -> None:
        self.axis = axis
        self.pixels = pixels
        low, high = axis.limits or (float(values.min()), float(values.max()))
        if axis.kind == "log":
            low, high = (low / 2, high * 2) if low == high else (low / 1.15, high * 1.15)
            self.low, self.high = math.log10(low), math.log10(high)
            self.ticks = [(math.log10(tick), format_number(tick)) for tick in log_ticks(low, high)]
            return
        if low == high:
            pad = abs(low) * 0.1 or 1.0
            low, high = low - pad, high + pad
        self.low, self.high = low, high
        factor, sign, step = (100, "%", 1.0) if axis.kind == "percent" else (1, "", 0.0)
        places = nice_ticks(low * factor, high * factor, whole=axis.whole)
        step = places[1] - places[0] if len(places) > 1 else step
        self.ticks = [(tick / factor, format_number(tick, step) + sign) for tick in places]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Pixels of values."""
        if self.axis.kind == "log":
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log10(values)
        start, stop = self.pixels
        return start + (values - self.low) / (self.high - self.low) * (stop - start)

    def at(self, place: float) -> float:
        """Pixel of a place on the axis: of a value, or of its logarithm if the axis is logarithmic."""
        start, stop = self.pixels
        return start + (place - self.low) / (self.high - self.low) * (stop - start)


def thin(x: np.ndarray, y: np.ndarray, max_buckets: int = _MAX_BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """Fewer points that look the same: of each of `max_buckets` parts the first, lowest, highest, last, and a gap."""
    if len(x) <= 4 * max_buckets:
        return x, y
    keep: set[int] = set()
    bounds = np.linspace(0, len(x), max_buckets + 1).astype(int)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part = y[start:stop]
        finite = np.flatnonzero(np.isfinite(part))
        keep |= {start, stop - 1}
        if len(finite):
            keep |= {start + int(finite[part[finite].argmin()]), start + int(finite[part[finite].argmax()])}
        if len(finite) < len(part):
            keep.add(start + int(np.flatnonzero(~np.isfinite(part))[0]))
    places = np.array(sorted(keep))
    return x[places], y[places]


def _path(px: np.ndarray, py: np.ndarray) -> str:
    pieces, pen = [], "M"
    for x, y in zip(px.tolist(), py.tolist(), strict=True):
        if math.isfinite(y):
            # Renderers fail on 1e300; a point this far outside the frame is not seen anyway.
            pieces.append(f"{pen}{x:.1f} {min(max(y, -1e4), 1e4):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(pieces)


def _visible(axis: Axis, curve: Curve) -> np.ndarray:
    values = curve.y[np.isfinite(curve.y)]
    return values[values > 1 / _MAX_SIZE] if axis.kind == "log" else values


def _y_limits(axis: Axis, curves: Sequence[Curve]) -> tuple[float, float]:
    """Lowest and highest value, without the highest half percent of raw values, which would stretch the axis."""
    lows, highs = [], []
    for curve in curves:
        values = _visible(axis, curve)
        if len(values):
            lows.append(float(values.min()))
            cut = curve.style == "faint" and len(values) > 20
            highs.append(float(np.quantile(values, 0.995) if cut else values.max()))
    low, high = min(lows), max(highs)
    if axis.kind != "log" and low < high:
        pad = 0.04 * (high - low)
        low, high = (low - pad if low < 0 or low > pad else 0.0), high + pad
    return low, high


def line_chart(
    title: str, curves: Sequence[Curve], *, x: Axis, y: Axis, size: Literal["half", "full"] = "half"
) -> Markup:
    """A figure with a title, a legend and a chart, of half of the page's width or the full width.

    A curve without a finite value is named in the legend but not drawn.
    """
    curves = [replace(c, y=np.where(np.abs(c.y) < _MAX_SIZE, c.y, np.nan)) for c in curves]
    drawn = [curve for curve in curves if len(_visible(y, curve))]
    legend = "".join(_legend_entry(curve, y, len(_visible(y, curve)) > 0) for curve in curves)
    caption = f'<strong>{esc(title)}</strong><span class="legend">{legend}</span>'
    head = f'<figure class="{size}"><figcaption>{caption}</figcaption>'
    if not drawn:
        return Markup(f'{head}<p class="note">No finite value was logged.</p></figure>')
    limits = y.limits or _y_limits(y, drawn)
    y = replace(y, limits=limits)
    scale_y = _Scale(y, np.zeros(1), (_HEIGHT - _BOTTOM, _TOP))
    spoken = f"{title}: " + "; ".join(f"{c.label} {_last(c, y)}" for c in drawn)
    images = ""
    for kind, width in _WIDTHS[size].items():
        scale_x = _Scale(x, np.concatenate([c.x for c in drawn]).astype(np.float64), (_LEFT, width - _RIGHT))
        body = "".join([_frame(scale_x, scale_y), *(_curve(c, scale_x, scale_y) for c in drawn)])
        extent = f'class="{kind}" viewBox="0 0 {width} {_HEIGHT}"'
        images += f'<svg {extent} role="img" aria-label="{esc(spoken)}">{body}</svg>'
    return Markup(f"{head}{images}{_cut_off(drawn, y, limits[1])}</figure>")


def _cut_off(curves: Sequence[Curve], y: Axis, top: float) -> str:
    """A note on the values that lie above the frame."""
    values = np.concatenate([_visible(y, curve) for curve in curves])
    above = int((values > top * (1 + 1e-9)).sum())
    return (
        f'<p class="note">Above the frame: {count(above, "raw value")}, up to {values.max():.4g}.</p>' if above else ""
    )


def _last(curve: Curve, y: Axis) -> str:
    values = curve.y[np.isfinite(curve.y)]
    return _text(float(values[-1]), y) if len(values) else "never finite"


def _text(value: float, y: Axis) -> str:
    return percent(value) if y.kind == "percent" else f"{value:.4g}"


def _legend_entry(curve: Curve, y: Axis, drawn: bool) -> str:
    dash = ' stroke-dasharray="4 3"' if curve.dashed else ""
    dot = '<circle cx="11" cy="5" r="3"/>' if curve.style == "dots" else ""
    kind = f"swatch c{curve.color} {curve.style}"
    swatch = f'<svg class="{kind}" viewBox="0 0 22 10" aria-hidden="true"><path d="M1 5H21"{dash}/>{dot}</svg>'
    value = f" <b>{esc(_last(curve, y))}</b>" if curve.shows_last or not drawn else ""
    return f"<span>{swatch}{esc(curve.label)}{value}</span>"


def _frame(scale_x: _Scale, scale_y: _Scale) -> str:
    (left, right), (bottom, top) = scale_x.pixels, scale_y.pixels
    parts: list[str] = []
    for place, text in scale_y.ticks:
        at = scale_y.at(place)
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 3.5:.1f}" text-anchor="end">{esc(text)}</text>')
    for place, text in scale_x.ticks:
        at = scale_x.at(place)
        parts.append(f'<path class="axis" d="M{at:.1f} {bottom}v4"/>')
        anchor = "end" if at > right - 12 else "middle"
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{esc(text)}</text>')
    parts.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    for where, axis in (
        (f'x="{middle_x}" y="{_HEIGHT - 6}"', scale_x.axis),
        (f'transform="translate(12 {middle_y})rotate(-90)"', scale_y.axis),
    ):
        parts.append(f'<text class="label" {where} text-anchor="middle">{esc(axis.label)}</text>')
    return "".join(parts)


def _curve(curve: Curve, scale_x: _Scale, scale_y: _Scale) -> str:
    x, y = thin(curve.x, curve.y)
    dash = ' stroke-dasharray="5 3"' if curve.dashed else ""
    path = _path(scale_x(x.astype(np.float64)), scale_y(y))
    (left, right), (bottom, top) = scale_x.pixels, scale_y.pixels
    width, height = right - left, bottom - top
    # An inner svg clips at its edges without an id, which two charts of a page would share.
    frame = f'x="{left}" y="{top}" width="{width}" height="{height}" viewBox="{left} {top} {width} {height}"'
    parts = [f'<svg {frame}><g class="c{curve.color} {curve.style}"><path d="{path}"{dash}/></g></svg>']
    # A single point between gaps is no line: it needs a dot to be seen.
    finite = np.isfinite(curve.y)
    alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
    with_tips = curve.style == "dots" and len(curve.x) <= _MAX_DOTS
    for place in np.flatnonzero(finite if with_tips else alone)[:_MAX_DOTS].tolist():
        px, py = float(scale_x(curve.x[place : place + 1])[0]), float(scale_y(curve.y[place : place + 1])[0])
        if not math.isfinite(py):
            continue
        start = curve.hints[place] if curve.hints else f"{scale_x.axis.label} {curve.x[place]:g}"
        tip = f"{start}: {curve.label} {_text(float(curve.y[place]), scale_y.axis)}"
        parts.append(
            f'<circle class="c{curve.color}" cx="{px:.1f}" cy="{py:.1f}" r="3"><title>{esc(tip)}</title></circle>'
        )
    return "".join(parts)


# px of the chart of one video, as wide as its frames, and of the room for the numbers of its axis.
_CLIPS_WIDTH, _CLIPS_HEIGHT, _CLIPS_LEFT = 420, 56, 40


def clip_chart(pred: Sequence[float], label: Sequence[float]) -> Markup:
    """A small chart of one video's scores, from 0 to 1, clip by clip: of the predicted and of the labelled class.

    Nothing for a single clip, and one line if the label was predicted, or there is none (`label` is then empty).
    """
    if len(pred) < 2:
        return Markup("")
    curves = [("predicted", pred)] if label in ([], pred) else [("predicted", pred), ("labelled", label)]
    top, bottom, parts = 5.0, _CLIPS_HEIGHT - 5.0, []
    for text, height in (("100%", top), ("0%", bottom)):
        parts.append(f'<path class="grid" d="M{_CLIPS_LEFT} {height}H{_CLIPS_WIDTH}"/>')
        parts.append(f'<text x="{_CLIPS_LEFT - 5}" y="{height + 3.5}" text-anchor="end">{text}</text>')
    # The middles of equal parts, as are the frames above.
    x = _CLIPS_LEFT + (np.arange(len(pred)) + 0.5) / len(pred) * (_CLIPS_WIDTH - _CLIPS_LEFT)
    for name, values in curves:
        dash = ' stroke-dasharray="5 3"' if name == "labelled" else ""
        y = bottom + np.clip(values, 0, 1) * (top - bottom)
        parts.append(f'<g class="line {name}"><path d="{_path(x, y)}"{dash}/></g>')
    spoken = ", ".join(f"{name} class {percent(min(v))} to {percent(max(v))}" for name, v in curves)
    extent = f'viewBox="0 0 {_CLIPS_WIDTH} {_CLIPS_HEIGHT}" width="{_CLIPS_WIDTH}" height="{_CLIPS_HEIGHT}"'
    title = f"<title>{esc(f'Scores of {len(pred)} clips: {spoken}')}</title>"
    return Markup(f'<svg class="clips" role="img" {extent}>{title}{"".join(parts)}</svg>')
