"""Lays the network's clip over a whole video, by time.

Letters: N frames of the video, W windows, T frames of a window, S stride.

    T = 4, S = 2, every second frame time:  f x f x f x f x          lasts T S frames
                                                f x f x f x f x

A stretch is a part of the video without a gap. Its first window begins with its first frame, the others follow at equal
distances, and the last one ends before the stretch does. None lies across a gap, and none is looped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from video_gn.errors import SettingError

# Of a frame's duration: by how much the times of frames may be off from an even rate, as rounded clocks make them.
_JITTER = 0.25
# The rounding of a clock in milliseconds, where the rate is not even.
_CLOCK_SECONDS = 0.001
# Of a frame: rounding of the times of an even rate, whose frames may lie 1/100,000 of a frame apart (see `sampling`).
_ROUNDING = 1e-6
# A day has 864,000 at a distance of 0.1 s. Each takes the memory of its frames' indices and of a score for each class.
MOST_WINDOWS = 1_000_000
# A longer step than so many usual ones may be a gap.
_USUAL_STEPS = 2


@dataclass(frozen=True)
class Windows:
    """Where windows lie.

    Args:
        seconds: Length of a window.
        middles_W: float64, times from the first frame of the video, ascending.
        indices_WT: int64, frames of each window.
        spans: For each stretch with windows, the first of them, one behind the last, and the end of the stretch.
        gaps: Times in which no frame is shown, each its start and end.
    """

    seconds: float
    middles_W: np.ndarray
    indices_WT: np.ndarray
    spans: tuple[tuple[int, int, float], ...]
    gaps: tuple[tuple[float, float], ...]


def place_windows(
    frame_seconds_N: np.ndarray,
    end_seconds: float,
    *,
    every_seconds: float,
    num_frames: int,
    stride: int,
    fps: float,
    target_fps: float | None = None,
) -> Windows:
    """Place windows whose middles are `every_seconds` apart.

    Frame j of a window is the one that is shown j * S / rate after the window's start. At a constant rate these are the
    frames of `video_gn.sampling`. The rate is `target_fps`, or the video's own, gaps not counted. A gap is a step
    between frames of more than half a window and of more than two usual steps.

    Args:
        frame_seconds_N: Time of each frame, strictly ascending, see `VideoReader.frame_seconds`.
        end_seconds: End of the last frame.
        every_seconds: Distance of windows, above 0.
        num_frames: T.
        stride: S.
        fps: Frame rate of the video, as its header has it.
        target_fps: Frame rate that the stride counts in; None for the video's own.

    Raises:
        SettingError: there would be more than `MOST_WINDOWS`.
    """
    steps = np.diff(frame_seconds_N, append=end_seconds)
    usual = float(np.median(steps))
    period = num_frames * stride
    rate = _own_rate(steps, fps, longest=longest_step(period / (target_fps or 1 / usual), usual))
    seconds = period / (target_fps or rate)
    is_gap = steps > longest_step(seconds, usual)
    middles, indices, spans = [np.zeros(0)], [np.zeros((0, num_frames), dtype=np.int64)], []
    num_windows = 0
    for first, stop in _stretches(is_gap):
        times = frame_seconds_N[first:stop]
        end = float(times[-1]) + (1 / rate if is_gap[stop - 1] else float(steps[stop - 1]))
        room = (end - times[0] - seconds + _JITTER / rate) // every_seconds + 1
        if room < 1:
            continue
        if num_windows + room > MOST_WINDOWS:
            raise SettingError(
                f"every_seconds (--every) must give at most {MOST_WINDOWS:,} windows a video, got {every_seconds} for "
                f"{end - times[0]:.6g} s. Give a larger one."
            )
        count = int(room)
        starts = times[0] + np.arange(count) * every_seconds
        middles.append(starts + seconds / 2)
        indices.append(first + _shown_at(starts[:, None] + np.arange(num_frames) * (seconds / num_frames), times, rate))
        spans.append((num_windows, num_windows + count, end))
        num_windows += count
    return Windows(
        seconds=seconds,
        middles_W=np.concatenate(middles),
        indices_WT=np.concatenate(indices),
        spans=tuple(spans),
        gaps=tuple(
            (float(frame_seconds_N[i]) + 1 / rate, float(frame_seconds_N[i] + steps[i])) for i in np.flatnonzero(is_gap)
        ),
    )


def longest_step(window_seconds: float, usual_seconds: float) -> float:
    """Longest step between two frames that is no gap, in seconds."""
    return max(window_seconds / 2, _USUAL_STEPS * usual_seconds)


def _own_rate(steps: np.ndarray, fps: float, *, longest: float) -> float:
    """The header's rate if the frames keep it, else their mean rate, without the last frame and without gaps."""
    inner = steps[:-1] if len(steps) > 1 else steps
    inner = inner[inner <= longest]
    if len(inner) == 0 or abs(fps * inner.sum() - len(inner)) <= _JITTER:
        return fps
    return len(inner) / float(inner.sum())


def _stretches(is_gap: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and one behind the last frame of each part without a gap; frame i is followed by a gap if `is_gap[i]`."""
    stops = [*(np.flatnonzero(is_gap[:-1]) + 1).tolist(), len(is_gap)]
    return zip([0, *stops], stops, strict=False)


def _shown_at(times: np.ndarray, frame_seconds: np.ndarray, rate: float) -> np.ndarray:
    """Index of the frame that is shown at each time; rounding does not lose one."""
    even = frame_seconds[0] + np.arange(len(frame_seconds)) / rate
    if np.abs(frame_seconds - even).max() <= _JITTER / rate:
        frame_seconds, slack = even, _ROUNDING / rate
    else:
        slack = min(_CLOCK_SECONDS, _JITTER / rate)
    return np.searchsorted(frame_seconds, times + slack, side="right") - 1
