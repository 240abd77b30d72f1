"""Draws labels, scores and the timeline of a video on its frames.

At the top the best labels of the window nearest to the frame, with bars; at the bottom the segments of the whole video,
and a mark at the frame's time. Both lie on a translucent dark panel, readable over bright and dark pictures. Sizes
follow the frame's: a letter is a 22nd of its short side high, but at least 10 px.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from video_gn.rendering.entries import Timeline, clock
from video_gn.rendering.text import fitted, line_height, text_mask, text_width
from video_gn.rendering.video import render_frames

# Blue, orange, green, pink, yellow, ice: a contrast of at least 3 to the panel over white, and told apart by the
# colour-blind too (tests/rendering/test_colours.py). Further labels have them again with stripes.
COLOURS = ("#4b8ee5", "#e8690f", "#98d38b", "#f9a8ee", "#f4f06a", "#c3f7fa")
GREY = "#9aa0a8"  # "unsure", and labels that win nowhere
_PANEL = (14, 16, 20, 208)
_TRACK = (72, 76, 84, 255)
_TEXT = (255, 255, 255, 255)
_LEAST_LETTER_PX, _LETTERS = 10, 22
_MOST_LETTERS = 20  # heights of a letter that the column of labels is wide at most: some 35 letters


def render(
    entry: Mapping[str, Any],
    video: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a video with its labels drawn on, see `render_frames`; the entry is one of `video-gn infer`."""
    render_frames(video, output, Overlay(Timeline.of(entry)), on_frame=on_frame)


class Overlay:
    """Draws a timeline on frames of one size: the `draw` of `render_frames`."""

    def __init__(self, timeline: Timeline) -> None:
        self._line = timeline
        self._size = (0, 0)
        self._drawn: dict[str, tuple[Any, _Patch]] = {}  # what shows now, by its place: (what it was drawn of, pixels)

    def __call__(self, frame_HWC: np.ndarray, seconds: float) -> np.ndarray:
        """Draw into a frame, uint8 (H, W, 3), and return it; the time is counted from the first frame."""
        height, width = frame_HWC.shape[:2]
        if self._size != (height, width):
            self._lay_out(height, width)
        line = self._line
        window = line.window_at(seconds)
        self._show(frame_HWC, "bars", window, lambda: self._bars(window))
        if line.segments or line.gaps:
            self._show(frame_HWC, "strip", None, self._strip)
            segment, shown = line.segment_at(seconds), int(seconds + line.first_frame_seconds)
            self._show(frame_HWC, "words", (segment, shown), lambda: self._words(segment, shown))
            self._mark(frame_HWC, seconds)
        return frame_HWC

    def _show(self, frame_HWC: np.ndarray, place: str, what: Any, make: Callable[[], _Patch]) -> None:
        """Lay a picture on the frame, which is drawn anew only if it changes."""
        if place not in self._drawn or self._drawn[place][0] != what:
            self._drawn[place] = (what, make())
        self._drawn[place][1].lay_on(frame_HWC)

    def _lay_out(self, height: int, width: int) -> None:
        self._size, self._drawn = (height, width), {}
        self._letter = letter = max(_LEAST_LETTER_PX, round(min(height, width) / _LETTERS))
        self._gap = max(2, letter // 4)
        self._row = line_height(letter)
        self._inside = max(1, width - 4 * self._gap)  # from the left end of the strip to its right end
        self._strip_height = max(6, letter // 2)
        self._strip_top = height - 2 * self._gap - self._strip_height
        # Columns of the bars: as wide for every window, as the longest of all labels asks for.
        self._number_width, self._bar_width = text_width("0.00", letter), min(4 * letter, width // 4)
        room = width - 6 * self._gap - self._number_width - self._bar_width
        widest = max(text_width(label, letter) for label in {best["label"] for top in self._line.top for best in top})
        self._label_width = max(1, min(widest, _MOST_LETTERS * letter, room))

    def _x_of(self, seconds: float) -> int:
        """Column of a time, from the left end of the strip."""
        share = min(max(seconds / max(self._line.duration_seconds, 1e-9), 0.0), 1.0)
        return round(share * self._inside)

    def _fill(self, label: str) -> tuple[str, bool]:
        """Colour of a label, and whether it is striped."""
        number = self._line.numbers.get(label)
        return (GREY, False) if number is None else (COLOURS[number % len(COLOURS)], number >= len(COLOURS))

    def _bars(self, window: int) -> _Patch:
        gap, row, letter = self._gap, self._row, self._letter
        room = max(1, int(0.42 * self._size[0] - 2 * gap) // row)
        top = self._line.top[window][:room]
        label_width, bar_width, number_width = self._label_width, self._bar_width, self._number_width
        panel_width = label_width + bar_width + number_width + 4 * gap
        image = _panel(panel_width, len(top) * row + 2 * gap, gap)
        for place, best in enumerate(top):
            y = gap + place * row
            _write(image, (gap, y), text_mask(best["label"], letter, label_width))
            left, bar = 2 * gap + label_width, (y + row // 5, y + row - row // 5)
            _paint(image, (left, bar[0], left + bar_width, bar[1]), _TRACK)
            colour, striped = self._fill(best["label"])
            _paint(image, (left, bar[0], left + round(best["score"] * bar_width), bar[1]), colour, striped)
            _write(image, (panel_width - gap - number_width, y), text_mask(f"{best['score']:.2f}", letter))
        return _Patch(image, (gap, gap))

    def _strip(self) -> _Patch:
        """The segments of the whole video, below a line of words."""
        gap, height = self._gap, self._row + 2 * self._gap + self._strip_height
        image = _panel(self._inside + 2 * gap, height, gap)
        top, bottom = height - gap - self._strip_height, height - gap
        _paint(image, (gap, top, gap + self._inside, bottom), _TRACK)
        for segment in self._line.segments:
            left, right = self._x_of(segment["start_seconds"]), self._x_of(segment["end_seconds"])
            colour, striped = self._fill(segment["label"])
            _paint(image, (gap + left, top, gap + max(right, left + 1), bottom), colour, striped)
        for start, end in self._line.gaps:
            left, right = self._x_of(start), self._x_of(end)
            _paint(image, (gap + left, top, gap + max(right, left + 1), bottom), "#16181c")
            _stripe(image, (gap + left, top, gap + max(right, left + 1), bottom), "#8a9099")
        return _Patch(image, (gap, self._size[0] - gap - height))

    def _words(self, segment: int | None, seconds: int) -> _Patch:
        """The present segment's label, and the time, on the strip's panel."""
        letter, gap = self._letter, self._gap
        image = Image.new("RGBA", (self._inside, self._row))
        duration = self._line.duration_seconds + self._line.first_frame_seconds
        time = fitted(f"{clock(seconds)} / {clock(duration)}", letter, self._inside)
        if segment is not None:
            label, side = self._line.segments[segment]["label"], letter // 2
            top = (self._row - side) // 2
            _paint(image, (0, top, side, top + side), *self._fill(label))
            room = self._inside - text_width(time, letter) - side - 2 * gap
            _write(image, (side + gap, 0), text_mask(label, letter, max(room, 1)))
        mask = text_mask(time, letter)
        _write(image, (self._inside - mask.width, 0), mask)
        return _Patch(image, (2 * gap, self._strip_top - self._row))

    def _mark(self, frame_HWC: np.ndarray, seconds: float) -> None:
        x, half = 2 * self._gap + self._x_of(seconds), self._letter // 20
        reach, edge = self._gap // 2, max(1, half)
        rows = slice(self._strip_top - reach, self._strip_top + self._strip_height + reach)
        frame_HWC[rows, max(0, x - half - edge) : x + half + edge + 1] = 0
        frame_HWC[rows, max(0, x - half) : x + half + 1] = 255


class _Patch:
    """A translucent picture at its place (x, y) in a frame."""

    def __init__(self, image: Image.Image, place: tuple[int, int]) -> None:
        pixels = np.asarray(image).astype(np.uint16)
        alpha = pixels[..., 3:]
        self._through = 255 - alpha
        self._ink = pixels[..., :3] * alpha + 128
        x, y = place
        self._where = (slice(y, y + image.height), slice(x, x + image.width))

    def lay_on(self, frame_HWC: np.ndarray) -> None:
        """Mix it into a frame."""
        under = frame_HWC[self._where]
        mixed = under * self._through[: under.shape[0], : under.shape[1]]
        mixed += self._ink[: under.shape[0], : under.shape[1]]
        mixed += mixed >> 8
        np.right_shift(mixed, 8, out=mixed)  # (v + v / 256) / 256 is v / 255, rounded, for products of two bytes
        under[...] = mixed


# ---- painting -----------------------------------------------------------------------------------

_Box = tuple[int, int, int, int]  # left, top, right and bottom, the last two excluded


def _panel(width: int, height: int, radius: int) -> Image.Image:
    image = Image.new("RGBA", (width, height))
    ImageDraw.Draw(image).rounded_rectangle((0, 0, width - 1, height - 1), radius, fill=_PANEL)
    return image


def _write(image: Image.Image, place: tuple[int, int], mask: Image.Image, colour: Any = _TEXT) -> None:
    image.paste(colour, place, mask)


def _paint(image: Image.Image, box: _Box, colour: Any, striped: bool = False) -> None:
    if box[2] > box[0]:
        image.paste(colour, box)
        if striped:
            _stripe(image, box, "#16181c")


def _stripe(image: Image.Image, box: _Box, colour: Any) -> None:
    """Draw diagonal lines in a box."""
    width, height = box[2] - box[0], box[3] - box[1]
    mask = Image.new("L", (width, height))
    pen, step = ImageDraw.Draw(mask), max(4, height // 2)
    for x in range(-height, width, step):
        pen.line((x, height, x + height, 0), fill=255, width=max(1, step // 4))
    image.paste(colour, box[:2], mask)
