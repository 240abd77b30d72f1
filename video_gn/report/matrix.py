"""The confusion matrix as SVG."""

from __future__ import annotations

from markupsafe import Markup

from video_gn.report.analysis import Predictions, count_pairs
from video_gn.report.text import esc, percent, shorten, text_width_px
from video_gn.shown import count

MAX_CLASSES = 50
_FONT_PX = 11.0
_MAX_LABEL_PX = 150.0
# With more classes the cells are too small for counts.
_MAX_CLASSES_WITH_COUNTS = 24


def confusion_matrix(predictions: Predictions) -> Markup:
    """The confusion matrix of at most `MAX_CLASSES` classes: rows are labels, columns predictions.

    The shade of a cell is its share of the row.
    """
    classes = predictions.classes
    size = len(classes)
    cell = 30.0 if size <= _MAX_CLASSES_WITH_COUNTS else 16.0
    labels = [shorten(text, _MAX_LABEL_PX, _FONT_PX) for text in classes]
    longest = max(text_width_px(text, _FONT_PX) for text in labels)
    left, top = longest + 34.0, longest * 0.75 + 34.0
    # The last column's slanted label reaches out to the right.
    width, height = left + size * cell + longest * 0.7 + 12.0, top + size * cell + 6.0
    side = size * cell
    turn = f"translate(12 {top + side / 2:.1f})rotate(-90)"
    parts = [
        f'<text class="label" x="{left + side / 2:.1f}" y="12" text-anchor="middle">predicted</text>',
        f'<text class="label" transform="{turn}" text-anchor="middle">labelled</text>',
        f'<rect class="empty" x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}"/>',
    ]
    for place, text in enumerate(labels):
        middle = (place + 0.5) * cell
        tip = f"<title>{esc(classes[place])}</title>"
        parts.append(f'<text x="{left - 6:.1f}" y="{top + middle + 4:.1f}" text-anchor="end">{esc(text)}{tip}</text>')
        turn = f"translate({left + middle + 3:.1f} {top - 6:.1f})rotate(-48)"
        parts.append(f'<text transform="{turn}">{esc(text)}{tip}</text>')
    parts += _cells(predictions, left, top, cell)
    for place in range(size + 1):
        lines = f"M{left:.1f} {top + place * cell:.1f}h{side:.1f}M{left + place * cell:.1f} {top:.1f}v{side:.1f}"
        parts.append(f'<path class="line" d="{lines}"/>')
    spoken = (
        f"Confusion matrix of {count(size, 'class', 'classes')} and {count(predictions.num_labelled, 'video')}: "
        f"{predictions.num_correct:,} on the diagonal"
    )
    extent = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    image = f'<svg class="matrix" role="img" aria-label="{esc(spoken)}" {extent}>{"".join(parts)}</svg>'
    return Markup(f'<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">{image}</div>')


def _cells(predictions: Predictions, left: float, top: float, cell: float) -> list[str]:
    classes = predictions.classes
    pairs = count_pairs(predictions)
    videos: dict[int, int] = {}
    for label, _, number in pairs:
        videos[label] = videos.get(label, 0) + number
    parts = []
    for label, pred, number in pairs:
        share = number / videos[label]
        x, y = left + pred * cell, top + label * cell
        tip = f"{classes[label]} → {classes[pred]}: {number:,} of {videos[label]:,} ({percent(share)})"
        kind = "right" if label == pred else "wrong"
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
            f'fill-opacity="{0.12 + 0.88 * share:.3f}"><title>{esc(tip)}</title></rect>'
        )
        if len(classes) <= _MAX_CLASSES_WITH_COUNTS:
            tone = "strong" if share > 0.45 else "weak"
            small = " small" if number >= 1000 else ""
            at = f'x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}"'
            parts.append(f'<text class="count {tone}{small}" {at} text-anchor="middle">{number}</text>')
    return parts
