"""Draws an explanation: heat over frames, and a strip of frames with the seconds that the answer needs.

Shape letters: H, W pixels of a picture.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from video_gn.decoding import open_video
from video_gn.explaining.explanation import Explanation
from video_gn.rendering.text import text_mask
from video_gn.rendering.video import render_frames

if TYPE_CHECKING:
    from PIL.Image import Image

# Perceptually even, from black to light yellow: it reads with any colour vision, and on dark pictures.
# Source: Smith & van der Walt 2015, in matplotlib.
_COLOURS = "inferno"
_DIMMED = 0.5  # of the frame's brightness, so that the largest heat is the brightest on any picture
_MOST = 0.65  # of a pixel is colour at the largest heat, so that the frame shows through
_UNSEEN, _STRIPES = 0.25, 40  # brightness of a frame that was not seen, and of stripes added to it

# The strip, in px. It is read at a third of its size on a phone.
_WIDTH, _MARGIN, _GAP = 1200, 24, 6
_TILES = 5
_MOST_HIGH = 300  # of a frame
_TEXT, _SMALL, _LINE = 34, 24, 30
_CURVE = 150
_MOST_NUMBERS = 12  # of the curve's parts, that each have their figures written
_INK, _FAINT, _PAPER = (25, 25, 25), (150, 150, 150), (255, 255, 255)
_FALLS, _RISES = (230, 120, 70), (130, 170, 210)


def overlay(frame_HWC: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """Heat over a dimmed grey frame, uint8; where heat is NaN the frame is darker, and striped: it was not seen."""
    from PIL import Image

    height, width = heat_HW.shape
    grey_HW = np.asarray(Image.fromarray(frame_HWC).convert("L"))
    period = max(8, min(height, width) // 20)
    stripes_HW = (np.arange(height)[:, None] + np.arange(width)) % period < period // 8
    level_HW = np.where(np.isnan(heat_HW), 256 + stripes_HW, np.nan_to_num(255 * heat_HW + 0.5)).astype(np.int16)
    factors, colours = _tables()
    dimmed_HW = (factors.take(level_HW) * grey_HW).astype(np.uint8)
    return colours.take(level_HW, axis=0) + dimmed_HW[..., None]  # at most 255


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Factor of grey and the colour to add: for heat of 0 to 255, then for what is not seen, then for stripes on it."""
    import matplotlib

    opacity = _MOST * np.linspace(0, 1, 256)[:, None]
    colours = 255 * opacity * matplotlib.colormaps[_COLOURS](np.arange(256))[:, :3]
    factors = np.append(_DIMMED * (1 - opacity[:, 0]), [_UNSEEN, _UNSEEN])
    return factors.astype(np.float32), np.concatenate((colours, [[0] * 3, [_STRIPES] * 3])).astype(np.uint8)


def render_heat(
    explanation: Explanation, output: str | os.PathLike[str], *, on_frame: Callable[[int, int], None] | None = None
) -> None:
    """Write the video with heat over every frame; errors and `on_frame` are those of `render_frames`."""

    def draw(frame_HWC: np.ndarray, seconds: float) -> np.ndarray:
        return overlay(frame_HWC, explanation.heat(seconds, *frame_HWC.shape[:2]))

    render_frames(explanation.info.path, output, draw, **({} if on_frame is None else {"on_frame": on_frame}))


def draw_strip(explanation: Explanation) -> Image:
    """A picture of frames over the whole video, below each the same with heat, and the score without each part.

    The frames are some of those that the network was given.

    Raises:
        DecodeError: the video cannot be read.
    """
    from PIL import Image

    frames, seconds = _frames(explanation)
    tile_width = (_WIDTH - 2 * _MARGIN - _GAP * (_TILES - 1)) // _TILES
    scale = min(tile_width / frames[0].width, _MOST_HIGH / frames[0].height)
    width, height = (max(1, round(scale * size)) for size in frames[0].size)
    top = _MARGIN + 2 * _TEXT
    below = top + 2 * height + 2 * _GAP
    picture = Image.new("RGB", (_WIDTH, below + 8 * _LINE + _CURVE), _PAPER)
    # Two texts: in one with a name from right to left, the figure would stand at its right.
    after = _MARGIN + _TEXT // 2 + _write(picture, (_MARGIN, _MARGIN), f"{explanation.score:.2f}", _TEXT)
    _write(picture, (after, _MARGIN), explanation.label, _TEXT)
    for number, (frame, at) in enumerate(zip(frames, seconds, strict=True)):
        left = _MARGIN + number * (tile_width + _GAP) + (tile_width - width) // 2
        small = frame.resize((width, height), Image.Resampling.BILINEAR)
        heated = overlay(np.asarray(small), explanation.heat(at, height, width))
        picture.paste(small, (left, top))
        picture.paste(Image.fromarray(heated), (left, top + height + _GAP))
        _write(picture, (left + width // 2, below), f"{at:.1f} s", align=0.5)
    _legend(picture, below + 3 * _LINE // 2)
    _curve(picture, explanation, below + 4 * _LINE)
    return picture


def _frames(explanation: Explanation) -> tuple[list[Image], np.ndarray]:
    """Frames of the clips, evenly spread over the time that they take, and the time of each."""
    from PIL import Image

    shown = np.unique(explanation.frame_seconds_KT)
    # The middles of equal parts.
    wanted = shown[0] + (np.arange(_TILES) + 0.5) / _TILES * (shown[-1] - shown[0])
    seconds = np.unique([shown[np.abs(shown - at).argmin()] for at in wanted])
    with open_video(explanation.info.path) as reader:
        places = [int(np.abs(reader.frame_seconds - at).argmin()) for at in seconds]
        return [Image.fromarray(frame.numpy()) for frame in reader.frames_at(places)], seconds


def _legend(picture: Image, top: int) -> None:
    """What colours mean, as the overlay of a grey frame."""
    from PIL import Image

    ramp_HW = np.linspace(0, 1, 240, dtype=np.float32)[None].repeat(_SMALL, 0)
    unseen_HW = np.full((_SMALL, 60), np.nan, np.float32)
    right = _WIDTH - _MARGIN - _write(picture, (_WIDTH - _MARGIN, top), "no clip shows this", align=1)
    for heat_HW, left in ((ramp_HW, _MARGIN), (unseen_HW, right - 72)):
        grey = np.full((*heat_HW.shape, 3), 128, np.uint8)
        picture.paste(Image.fromarray(overlay(grey, heat_HW)), (left, top))
    _write(picture, (_MARGIN + 252, top), "heat, from 0 to the largest of this video")


def _curve(picture: Image, explanation: Explanation, top: int) -> None:
    """Scores without each part of the video, as bars from the score with all of it."""
    from PIL import ImageDraw

    _write(picture, (_MARGIN, top), "score with these seconds hidden (line: with none hidden)")
    draw = ImageDraw.Draw(picture)
    top += 3 * _LINE // 2
    bottom, left, right = top + _CURVE, _MARGIN, _WIDTH - _MARGIN

    def x(seconds: float) -> int:
        return round(left + seconds / explanation.occlusion[-1].end_seconds * (right - left))

    def y(score: float) -> int:
        return round(bottom - score * _CURVE)

    draw.rectangle((left, top, right, bottom), outline=_FAINT)
    is_tight = len(explanation.occlusion) > _MOST_NUMBERS
    for start, end, without in explanation.occlusion:
        if not is_tight:
            _write(picture, (x(end), bottom + 6), f"{end:.1f} s", align=1)
        if without is None:
            continue
        high, low = sorted((y(without), y(explanation.score)))
        colour = _FALLS if without < explanation.score else _RISES
        draw.rectangle((x(start) + 2, high, x(end) - 2, low), fill=colour)
        if not is_tight:
            above = explanation.score < 0.5  # in the larger half
            place = ((x(start) + x(end)) // 2, top + 4 if above else bottom - _LINE)
            _write(picture, place, f"{without:.2f}", align=0.5)
    draw.line((left, y(explanation.score), right, y(explanation.score)), fill=_INK, width=3)


def _write(picture: Image, place: tuple[int, int], text: str, size_px: int = _SMALL, *, align: float = 0) -> int:
    """Write a line with its left end (0), middle (0.5) or right end (1) at a place; its width in px."""
    mask = text_mask(text, size_px, _WIDTH - _MARGIN - (_MARGIN if align else place[0]))
    picture.paste(_INK, (place[0] - round(align * mask.width), place[1]), mask)
    return mask.width
