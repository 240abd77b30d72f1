"""From scores of windows to segments of one label.

Letters: W windows, Y classes, L labels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np

from video_gn.errors import SettingError
from video_gn.evaluation.prediction import UNSURE
from video_gn.timelines.windows import Windows

# Seconds: rounding of times.
_ROUNDING = 1e-9
# Smoothed at a time: the sums of a video of hours take several times the memory of its scores.
_CLASSES_AT_A_TIME = 32


@dataclass(frozen=True)
class TimelineConfig:
    """Where windows lie, and how they become segments.

    Args:
        every_seconds: Distance of windows, at least 0.001, to which their times are rounded.
        smooth_seconds: Width of the moving average over scores, from which segments are made; None for one window.
        min_seconds: Shortest segment; None for half a window.
        unsure: Score below which a segment is better called "unsure"; 0 for never. An unsure segment lasts at least a
            window and `smooth_seconds`: for so long a change of label lowers the scores of both labels.
    """

    every_seconds: float
    smooth_seconds: float | None = None
    min_seconds: float | None = None
    unsure: float = 0.5

    def __post_init__(self) -> None:
        for name, option, least, most, rule in (
            ("every_seconds", "--every", 0.001, sys.float_info.max, "at least 0.001"),
            ("smooth_seconds", "--smooth", 0, sys.float_info.max, "at least 0"),
            ("min_seconds", "--min_seconds", 0, sys.float_info.max, "at least 0"),
            ("unsure", "--unsure", 0, 1, "a score from 0 to 1"),
        ):
            value = getattr(self, name)
            if value is None and name in ("smooth_seconds", "min_seconds"):
                continue
            if not isinstance(value, SupportsFloat) or not least <= float(value) <= most:
                raise SettingError(f"{name} ({option}) must be {rule}, got {value!r}.")
            object.__setattr__(self, name, float(value))  # numpy's numbers cannot be written as json


def find_segments(
    scores_WY: np.ndarray, windows: Windows, classes: Sequence[str], config: TimelineConfig
) -> list[dict[str, Any]]:
    """Segments of one label, from smoothed scores; parts of the video between gaps by themselves.

    A segment begins and ends midway between the middles of windows; the first one with its first window, the last one
    with its last.

    Returns:
        [{"label", "start_seconds", "end_seconds", "score"}]: the score is the mean smoothed one of the label; of an
        unsure segment, that of the best class of each window.
    """
    width = windows.seconds if config.smooth_seconds is None else config.smooth_seconds
    shortest = windows.seconds / 2 if config.min_seconds is None else config.min_seconds
    reach = int(min(width / 2 / config.every_seconds + 1e-9, len(scores_WY)))
    found = []
    for first, stop, end in windows.spans:
        smoothed_WY = smooth_scores(scores_WY[first:stop], reach)
        middles = windows.middles_W[first:stop]
        last = min(float(middles[-1]) + windows.seconds / 2, end)
        bounds = np.concatenate([[middles[0] - windows.seconds / 2], (middles[1:] + middles[:-1]) / 2, [last]])
        labels_WL, shortest_L = smoothed_WY, np.full(smoothed_WY.shape[1], shortest)
        if config.unsure > 0:
            labels_WL = np.pad(smoothed_WY, ((0, 0), (0, 1)), constant_values=config.unsure)
            shortest_L = np.append(shortest_L, max(shortest, windows.seconds + width))
        for begin, behind, label in best_segments(labels_WL, bounds, shortest_L):
            is_sure = label < smoothed_WY.shape[1]
            part_WY = smoothed_WY[begin:behind]
            score = part_WY[:, label].mean() if is_sure else part_WY.max(1).mean()
            found.append(
                {
                    "label": (classes[label] if classes else str(label)) if is_sure else UNSURE,
                    "start_seconds": round(float(bounds[begin]), 3),
                    "end_seconds": round(float(bounds[behind]), 3),
                    "score": round(float(score), 6),
                }
            )
    return found


def smooth_scores(scores_WY: np.ndarray, reach: int) -> np.ndarray:
    """Average each window's scores with those of up to `reach` windows before it and after it.

    Returns:
        float32 (W, Y).
    """
    places = np.arange(len(scores_WY))
    first, stop = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(scores_WY))
    smoothed_WY = np.empty(scores_WY.shape, dtype=np.float32)
    for begin in range(0, scores_WY.shape[1], _CLASSES_AT_A_TIME):
        part_WY = scores_WY[:, begin : begin + _CLASSES_AT_A_TIME]
        totals = np.concatenate([np.zeros((1, part_WY.shape[1])), np.cumsum(part_WY, axis=0, dtype=np.float64)])
        means_WY = (totals[stop] - totals[first]) / (stop - first)[:, None]
        smoothed_WY[:, begin : begin + _CLASSES_AT_A_TIME] = means_WY
    return smoothed_WY


def best_segments(scores_WL: np.ndarray, bounds: np.ndarray, shortest_L: np.ndarray) -> list[tuple[int, int, int]]:
    """The labelling of windows with the highest sum of scores whose segments all last long enough.

    By dynamic programming over the end of a segment; for each label the best start is kept, so that the time is
    that of W x L additions.

    Args:
        scores_WL: Score of each label in each window, W at least 1.
        bounds: (W + 1,), ascending: a segment of windows i to j - 1 lasts from `bounds[i]` to `bounds[j]`.
        shortest_L: Shortest segment of each label, in seconds. If all windows together are shorter, they may be one.

    Returns:
        (first window, one behind the last, label) of each segment; neighbours have different labels.
    """
    num_windows, num_labels = scores_WL.shape
    shortest_L = np.minimum(shortest_L, bounds[-1] - bounds[0])
    # Labels of one length, and how many starts their segment that ends at each bound may have.
    groups = [
        (np.flatnonzero(shortest_L == seconds), np.searchsorted(bounds, bounds - seconds + _ROUNDING, side="right"))
        for seconds in np.unique(shortest_L)
    ]
    num_tried = [0] * len(groups)
    best = np.full(num_windows + 1, -np.inf)  # highest sum of the windows before each bound
    best[0] = 0.0
    ended: list[tuple[int, int]] = [(0, 0)]  # start and label of the last segment of that sum
    total_L, total_before_L = np.zeros(num_labels), np.zeros(num_labels)  # of windows before the end; before the start
    gain_L = np.full(num_labels, -np.inf)  # highest sum before a start, less the label's total before it
    start_L = np.zeros(num_labels, dtype=np.int64)
    for end in range(1, num_windows + 1):
        total_L += scores_WL[end - 1]
        for number, (labels, num_starts) in enumerate(groups):
            for start in range(num_tried[number], min(end, num_starts[end])):
                candidates = best[start] - total_before_L[labels]
                is_better = candidates > gain_L[labels]
                gain_L[labels[is_better]], start_L[labels[is_better]] = candidates[is_better], start
                total_before_L[labels] += scores_WL[start, labels]
                num_tried[number] = start + 1
        sum_L = gain_L + total_L
        label = int(sum_L.argmax())
        best[end] = sum_L[label]
        ended.append((int(start_L[label]), label))
    segments: list[tuple[int, int, int]] = []
    stop = num_windows
    while stop > 0:
        first, label = ended[stop]
        if segments and segments[-1][2] == label:
            segments[-1] = (first, segments[-1][1], label)
        else:
            segments.append((first, stop, label))
        stop = first
    return segments[::-1]
