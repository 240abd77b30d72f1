"""Figures that the page shows, from predictions and scores. Numpy only; accuracies are fractions.

Shape letters: V videos, K views, Y classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """A test's predictions, in columns.

    Args:
        videos: paths.
        classes: names that occur as label or prediction, in natural order.
        labels: int64 (V,) numbers of `classes`, -1 where a video has none.
        preds: int64 (V,).
        scores: float64 (V,) of the predicted class.
        ranks: int64 (V,) place of the label among the five best, 1 to 5, or 0.
        num_views: int64 (V,).
    """

    videos: list[str]
    classes: list[str]
    labels: np.ndarray
    preds: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    num_views: np.ndarray

    @property
    def num_labelled(self) -> int:
        """Videos that have a label."""
        return int((self.labels >= 0).sum())

    @property
    def num_correct(self) -> int:
        """Labelled videos whose prediction is right."""
        return int((self.labels == self.preds).sum())


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted as people do: 2 before 10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        # isdecimal, since int() rejects other digits such as superscripts, which \d does not match either.
        parts = [part for part in re.split(r"(\d+)", name.casefold()) if part]
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name

    return sorted(names, key=key)


def wilson_interval(num_correct: float, num_videos: int) -> tuple[float, float]:
    """95% confidence interval of an accuracy.

    Args:
        num_correct: right ones of them.
        num_videos: at least 1.

    Source: Wilson 1927, score interval, z = 1.96.
    """
    z, n = 1.959964, num_videos
    accuracy = num_correct / n
    center = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def smooth(values: np.ndarray, window: float) -> np.ndarray:
    """Exponential moving average without the pull of a start value.

    y[t] = sum_s d^(t-s) x[s] / sum_s d^(t-s) over s <= t, d = 1 - 1/window. What is not finite is left
    out of the sums, so that a single NaN does not end the curve.

    Args:
        values: (n,).
        window: at least 1; 1 gives the values themselves.
    """
    decay = 1.0 - 1.0 / max(1.0, window)
    total, weight = 0.0, 0.0
    out = np.empty(len(values))
    for place, value in enumerate(values.tolist()):
        total, weight = total * decay, weight * decay
        if math.isfinite(value):
            total, weight = total + value, weight + 1.0
        out[place] = total / weight if weight > 0 else math.nan
    return out


@dataclass(frozen=True)
class ClassRow:
    """One class of a test.

    Args:
        name: of the class.
        num_videos: that have this label.
        num_correct: of them.
        num_top5: of them with the label among the five best.
        num_predicted: videos that were given this class, among the labelled.
        mistaken_for: the class most often given in its place; "" where none was.
        num_mistaken: how often.
    """

    name: str
    num_videos: int
    num_correct: int
    num_top5: int
    num_predicted: int
    mistaken_for: str
    num_mistaken: int

    @property
    def accuracy(self) -> float:
        """Right ones among the videos of this class; NaN where it has none."""
        return self.num_correct / self.num_videos if self.num_videos else math.nan


@dataclass(frozen=True)
class Pair:
    """Videos of one class that were given another."""

    label: int
    pred: int
    count: int
    num_videos: int


def count_pairs(predictions: Predictions) -> list[tuple[int, int, int]]:
    """(label, prediction, count) of what occurs among the labelled videos: no dense table of Y x Y."""
    labelled = predictions.labels >= 0
    num_classes = len(predictions.classes)
    code, count = np.unique(
        predictions.labels[labelled] * num_classes + predictions.preds[labelled], return_counts=True
    )
    return [(int(c) // num_classes, int(c) % num_classes, int(n)) for c, n in zip(code, count, strict=True)]


def class_rows(predictions: Predictions) -> list[ClassRow]:
    """A row for each class with a label or a prediction; the hardest first, those without videos last."""
    labelled = predictions.labels >= 0
    labels, size = predictions.labels[labelled], len(predictions.classes)
    videos = np.bincount(labels, minlength=size)
    correct = np.bincount(labels[labels == predictions.preds[labelled]], minlength=size)
    top5 = np.bincount(labels[predictions.ranks[labelled] > 0], minlength=size)
    predicted = np.bincount(predictions.preds[labelled], minlength=size)
    worst: dict[int, tuple[int, int]] = {}
    for label, pred, count in count_pairs(predictions):
        if label != pred and count > worst.get(label, (0, 0))[0]:
            worst[label] = (count, pred)
    rows = []
    for number, name in enumerate(predictions.classes):
        count, pred = worst.get(number, (0, -1))
        rows.append(
            ClassRow(
                name=name,
                num_videos=int(videos[number]),
                num_correct=int(correct[number]),
                num_top5=int(top5[number]),
                num_predicted=int(predicted[number]),
                mistaken_for=predictions.classes[pred] if count else "",
                num_mistaken=count,
            )
        )
    order = {row.name: place for place, row in enumerate(rows)}
    return sorted(rows, key=lambda r: (r.num_videos == 0, r.accuracy if r.num_videos else 0.0, order[r.name]))


def confused_pairs(predictions: Predictions, limit: int) -> list[Pair]:
    """The pairs of classes that were mixed up most often; of equal counts those of the smaller class first."""
    pairs = count_pairs(predictions)
    videos = np.bincount(predictions.labels[predictions.labels >= 0], minlength=len(predictions.classes))
    wrong = [Pair(label, pred, count, int(videos[label])) for label, pred, count in pairs if label != pred]
    return sorted(wrong, key=lambda p: (-p.count, p.num_videos, p.label, p.pred))[:limit]


def confident_mistakes(predictions: Predictions, limit: int) -> list[int]:
    """Places of the labelled videos that are wrong, by falling score; NaN scores last."""
    wrong = np.flatnonzero((predictions.labels >= 0) & (predictions.labels != predictions.preds))
    order = np.argsort(-predictions.scores[wrong], kind="stable")[:limit]
    return [int(place) for place in wrong[order]]


@dataclass(frozen=True)
class Calibration:
    """How far scores can be taken as probabilities.

    Args:
        edges: (bins + 1,) of score.
        counts: (bins,) labelled videos.
        scores: (bins,) their mean score; NaN where there are none.
        accuracies: (bins,) their accuracy; NaN where there are none.
        expected_error: mean over videos of |accuracy - score| of their bin.
    """

    edges: np.ndarray
    counts: np.ndarray
    scores: np.ndarray
    accuracies: np.ndarray
    expected_error: float


def calibrate(predictions: Predictions, num_bins: int = 10) -> Calibration | None:
    """Reliability by bins of equal width; None where no labelled video has a finite score.

    Source: expected calibration error of Guo et al. 2017 (arXiv:1706.04599), Eq. 5.
    """
    use = (predictions.labels >= 0) & np.isfinite(predictions.scores)
    if not use.any():
        return None
    scores = predictions.scores[use]
    correct = predictions.labels[use] == predictions.preds[use]
    # (0.1, 0.2] and so on; a score of 0 belongs to the first bin.
    place = np.clip(np.ceil(scores * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(place, weights=scores, minlength=num_bins) / counts
        accuracy = np.bincount(place, weights=correct, minlength=num_bins) / counts
    error = float(np.nansum(np.abs(accuracy - mean_score) * counts) / counts.sum())
    return Calibration(np.linspace(0.0, 1.0, num_bins + 1), counts, mean_score, accuracy, error)


@dataclass(frozen=True)
class ViewCurve:
    """Accuracy by number of clips.

    Args:
        num_videos: in the file.
        num_labelled: of them.
        num_classes: scores of a view.
        num_clips: of a video.
        num_crops: of a clip.
        single_view: accuracy of a view alone, the mean over all views.
        counts: numbers of clips whose scores are averaged, rising.
        accuracies: top-1 for each of `counts`.
        num_not_finite: labelled videos with a score that is no number; they count as wrong.
    """

    num_videos: int
    num_labelled: int
    num_classes: int
    num_clips: int
    num_crops: int
    single_view: float
    counts: tuple[int, ...]
    accuracies: tuple[float, ...]
    num_not_finite: int


def spread(count: int, num_clips: int) -> list[int]:
    """`count` of `num_clips` clips, spread evenly: each the middle of its share.

    1 of 10 -> [5]; 2 of 10 -> [2, 7]; 3 of 10 -> [1, 5, 8].
    """
    return [(2 * i + 1) * num_clips // (2 * count) for i in range(count)]


class ViewCurveBuilder:
    """Adds up, video by video, how often the mean of so many clips is right.

    Args:
        num_clips: of a video.
        num_crops: of a clip; views lie clip by clip, a clip's crops side by side.
    """

    def __init__(self, *, num_clips: int, num_crops: int) -> None:
        self._clips, self._crops = num_clips, num_crops
        # At most 20 points of the curve: the sums of all counts of 100 clips would be 5000 a video.
        counts = np.unique(np.linspace(1, num_clips, min(num_clips, 20)).round().astype(int))
        self._counts = tuple(int(c) for c in counts)
        self._correct = np.zeros(len(self._counts), dtype=np.int64)
        self._single = self._labelled = self._not_finite = 0

    def add(self, scores_VKY: np.ndarray, labels_V: np.ndarray) -> None:
        """Add some videos; those without a label, -1, are left out."""
        if len(labels_V) and labels_V.max() >= scores_VKY.shape[2]:
            raise ValueError(f"labels must be below the {scores_VKY.shape[2]} classes of scores, got {labels_V.max()}")
        keep = labels_V >= 0
        scores_VKY, labels_V = scores_VKY[keep].astype(np.float64), labels_V[keep]
        finite = np.isfinite(scores_VKY).all(axis=(1, 2))
        self._labelled += len(labels_V)
        self._not_finite += int((~finite).sum())
        scores_VKY, labels_V = scores_VKY[finite], labels_V[finite]
        self._single += int((scores_VKY.argmax(2) == labels_V[:, None]).sum())
        videos, _, classes = scores_VKY.shape
        clips_VKY = scores_VKY.reshape(videos, self._clips, self._crops, classes).mean(2)
        for place, count in enumerate(self._counts):
            mean_VY = clips_VKY[:, spread(count, self._clips)].mean(1)
            self._correct[place] += int((mean_VY.argmax(1) == labels_V).sum())

    def finish(self, *, num_videos: int, num_classes: int) -> ViewCurve | None:
        """The curve; None where no video has a label."""
        if not self._labelled:
            return None
        return ViewCurve(
            num_videos=num_videos,
            num_labelled=self._labelled,
            num_classes=num_classes,
            num_clips=self._clips,
            num_crops=self._crops,
            single_view=self._single / (self._labelled * self._clips * self._crops),
            counts=self._counts,
            accuracies=tuple(float(c) / self._labelled for c in self._correct),
            num_not_finite=self._not_finite,
        )
