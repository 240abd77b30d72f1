"""Reads test/scores.npz a few videos at a time: it may be larger than memory.

Shape letters: V videos, K views, Y classes.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from video_gn.damage import DAMAGE
from video_gn.report.analysis import Predictions

# Numbers of a block that is in memory at once: 16 MB.
_BLOCK = 4_000_000
# Rounding of the scores in predictions.csv, and of sums in another order.
_SAME = 1e-3


@dataclass(frozen=True)
class ViewScores:
    """Where the scores of a scores.npz lie."""

    path: Path
    labels: np.ndarray  # int (V,), class numbers, -1 for a video without a label
    shape: tuple[int, int, int]  # V, K, Y; views lie clip by clip, a clip's crops side by side
    dtype: np.dtype
    offset: int  # byte of the file where they begin

    def read(self, start: int, stop: int) -> np.ndarray:
        """Softmax scores of the videos in [start, stop): float32 (n, K, Y)."""
        # A mapping of its own, which goes when it is copied: one of the whole file would count as memory in use.
        offset = self.offset + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (stop - start, *self.shape[1:])
        return np.array(np.memmap(self.path, self.dtype, "r", offset, shape), dtype=np.float32)

    def means(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first video, scores averaged over views, float32 (n, Y)) of blocks of videos, in order."""
        size = max(1, _BLOCK // math.prod(self.shape[1:]))
        for start in range(0, self.shape[0], size):
            yield start, self.read(start, min(start + size, self.shape[0])).mean(1)


def open_scores(path: Path) -> ViewScores:
    """Find the scores in a scores.npz of uncompressed arrays; a ValueError or another of `DAMAGE` for other content."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        info = archive.getinfo("scores.npy")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its arrays must be stored uncompressed")
        with archive.open("labels.npy") as entry:
            labels = np.lib.format.read_array(entry, allow_pickle=False)
        # The entry's data follow its own header, whose last two numbers are the lengths of the name and of the rest.
        file.seek(info.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        is_v1 = np.lib.format.read_magic(file) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if is_v1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        is_whole = file.tell() + math.prod(shape) * dtype.itemsize <= path.stat().st_size
        if labels.dtype.kind != "i" or dtype.kind != "f" or len(shape) != 3 or 0 in shape or not is_whole:
            raise ValueError(f"scores must be numbers (videos, views, classes) that it holds, got {dtype} {shape}")
        if labels.shape != shape[:1]:
            raise ValueError(f"it must have {shape[0]} labels, got {labels.shape}")
        return ViewScores(path, labels, shape, dtype, file.tell())


class ClipScores(NamedTuple):
    """One video's scores over its clips."""

    pred: list[float]  # of the predicted class, for each clip; of several crops their mean
    label: list[float]  # of the labelled class; empty for a video without a label
    num_right: int  # views whose best class is the label
    num_views: int


def read_clips(
    scores: ViewScores | None, predictions: Predictions, places: Sequence[int], num_crops: int
) -> dict[int, ClipScores]:
    """Scores over the clips of some videos, by their places in predictions.csv; only these are read.

    Empty if the file is missing, damaged or of another test.
    """
    found: dict[int, ClipScores] = {}
    if scores is None:
        return found
    try:
        for place in places:
            scores_KY, label = scores.read(place, place + 1)[0].astype(np.float64), int(scores.labels[place])
            mean_Y = scores_KY.mean(0)
            if abs(mean_Y.max() - predictions.scores[place]) > _SAME:
                return {}
            per_clip = scores_KY.reshape(-1, num_crops if len(scores_KY) % num_crops == 0 else 1, len(mean_Y)).mean(1)
            of_label = per_clip[:, label].tolist() if label >= 0 else []
            right = int((scores_KY.argmax(1) == label).sum())
            found[place] = ClipScores(per_clip[:, mean_Y.argmax()].tolist(), of_label, right, len(scores_KY))
    except DAMAGE:
        return {}
    return found


def read_log_scores(scores: ViewScores | None, predictions: Predictions) -> tuple[np.ndarray, np.ndarray] | None:
    """Log of the scores averaged over views, float32 (n, Y), and labels (n,), of the labelled videos in order.

    None if the file is missing, damaged or of another test.
    """
    if scores is None or scores.shape[0] != len(predictions.videos):
        return None
    labelled = scores.labels >= 0
    log_VY = np.empty((int(labelled.sum()), scores.shape[2]), np.float32)
    filled = 0
    try:
        for start, means_VY in scores.means():
            rows = slice(start, start + len(means_VY))
            best, stated = means_VY.max(1), predictions.scores[rows]
            if not (np.abs(best - stated) < _SAME).all() or ((predictions.labels[rows] >= 0) != labelled[rows]).any():
                return None
            kept = means_VY[labelled[rows]]
            # A score that has been rounded to 0 is not impossible: it counts as the smallest that float32 has.
            log_VY[filled : filled + len(kept)] = np.log(np.maximum(kept, np.finfo(np.float32).tiny))
            filled += len(kept)
    except DAMAGE:
        return None
    labels = scores.labels[labelled].astype(np.int64)
    return (log_VY, labels) if len(labels) and labels.max() < scores.shape[2] else None
