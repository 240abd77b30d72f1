"""Top-1 accuracy by the number of clips whose scores are averaged.

Shape letters: K views, Y classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# The sums of all numbers of clips up to 100 would be 5000 a video.
_MAX_POINTS = 20


class ClipCurve:
    """Counts, video by video, how often the mean score of so many clips is right.

    As in `MultiViewAccuracy`, a tie counts against the network. Views lie clip by clip, a clip's crops side by side.
    """

    def __init__(self, *, num_clips: int, num_crops: int) -> None:
        counts = np.linspace(1, num_clips, min(num_clips, _MAX_POINTS)).round().astype(int)
        self._clips = {count: spread(count, num_clips) for count in np.unique(counts).tolist()}
        self._shape = (num_clips, num_crops)
        self._num_right = dict.fromkeys(self._clips, 0)
        self._num_right_views = self._num_videos = 0

    def add(self, scores_KY: np.ndarray, label: int) -> None:
        """Add a video's softmax scores; a video without a label, -1, is left out."""
        if label < 0:
            return
        self._num_videos += 1
        scores_KY = scores_KY.astype(np.float64)
        self._num_right_views += int(_is_right(scores_KY, label).sum())
        clips_KY = scores_KY.reshape(*self._shape, -1).mean(1)
        for count, clips in self._clips.items():
            self._num_right[count] += int(_is_right(clips_KY[clips].mean(0), label))

    def results(self) -> dict[str, Any] | None:
        """The curve as test/metrics.json holds it; None if no video has a label.

        Returns:
            "num_clips": numbers of clips averaged, rising, each clip with all its crops; "top1": the accuracy for
            each; "top1_single_view": the accuracy of a view alone, averaged over all views.
        """
        if not self._num_videos:
            return None
        num_clips, num_crops = self._shape
        return {
            "num_clips": list(self._num_right),
            "top1": [number / self._num_videos for number in self._num_right.values()],
            "top1_single_view": self._num_right_views / (self._num_videos * num_clips * num_crops),
        }


def spread(count: int, num_clips: int) -> list[int]:
    """`count` of `num_clips` clips, spread evenly: each the middle of its share.

    1 of 10 -> [5]; 2 of 10 -> [2, 7]; 3 of 10 -> [1, 5, 8].
    """
    return [(2 * i + 1) * num_clips // (2 * count) for i in range(count)]


def _is_right(scores: np.ndarray, label: int) -> np.ndarray:
    """Whether no other class scores as high as the label, along the last axis."""
    return (scores >= scores[..., label, None]).sum(-1) == 1
