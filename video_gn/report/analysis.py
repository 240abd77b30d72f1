"""Figures of a test's predictions: classes, confusions, mistakes. Accuracies are fractions.

Shape letters: V videos, Y classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """A test's predictions, in columns."""

    videos: list[str]
    classes: list[str]  # names that occur as label or prediction, in natural order
    labels: np.ndarray  # int64 (V,), places in `classes`, -1 for a video without a label
    preds: np.ndarray  # int64 (V,), places in `classes`
    scores: np.ndarray  # float64 (V,), score of the predicted class
    ranks: np.ndarray  # int64 (V,), rank of the label among the five best classes, 1 to 5, or 0

    @property
    def num_labelled(self) -> int:
        """Videos with a label."""
        return int((self.labels >= 0).sum())

    @property
    def num_correct(self) -> int:
        """Labelled videos that were predicted right."""
        return int((self.labels == self.preds).sum())


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted as people do: 2 before 10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        # isdecimal, since int() rejects other digits such as superscripts, which \d does not match either, and numbers
        # of thousands of digits.
        parts = [part for part in re.split(r"(\d{1,18})", name.casefold()) if part]
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name

    return sorted(names, key=key)


def wilson_interval(num_correct: float, num_videos: int) -> tuple[float, float]:
    """95% confidence interval of the accuracy `num_correct` / `num_videos`.

    Source: Wilson 1927, score interval, z = 1.96.
    """
    z, n = 1.959964, num_videos
    accuracy = num_correct / n
    center = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def smooth(values: np.ndarray, window: float) -> np.ndarray:
    """Exponential moving average without the pull of a start value.

    y[t] = sum_s d^(t-s) x[s] / sum_s d^(t-s) over s <= t, d = 1 - 1/window. Values that are not finite are left
    out of the sums, so that a single NaN does not end the curve. A window of 1 gives the values themselves.
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
    """One class of a test."""

    name: str
    num_videos: int  # videos with this label
    num_correct: int  # those of them that were predicted right
    num_top5: int  # those of them with the label among the five best classes
    num_predicted: int  # labelled videos that were predicted as this class
    mistaken_for: str  # the class most often predicted in its place; "" if none was
    num_mistaken: int  # how often that was

    @property
    def accuracy(self) -> float:
        """Share of the class's videos that were predicted right; NaN if it has none."""
        return self.num_correct / self.num_videos if self.num_videos else math.nan


@dataclass(frozen=True)
class Pair:
    """Classes that were confused: `count` of the `num_videos` videos of `label` were predicted as `pred`."""

    label: int
    pred: int
    count: int
    num_videos: int


def count_pairs(predictions: Predictions) -> list[tuple[int, int, int]]:
    """(label, prediction, count) of each pair that occurs among the labelled videos: no dense table of Y x Y."""
    labelled = predictions.labels >= 0
    size = len(predictions.classes)
    code = predictions.labels[labelled] * size + predictions.preds[labelled]  # ten times as fast as unique rows
    found, counts = np.unique(code, return_counts=True)
    return [(*divmod(pair, size), count) for pair, count in zip(found.tolist(), counts.tolist(), strict=True)]


def class_rows(predictions: Predictions) -> list[ClassRow]:
    """A row for each class with a label or a prediction; the hardest first, classes without videos last."""
    labelled = predictions.labels >= 0
    labels, preds = predictions.labels[labelled], predictions.preds[labelled]
    # In the order of `ClassRow`.
    groups = (labels, labels[labels == preds], labels[predictions.ranks[labelled] > 0], preds)
    counts = np.stack([np.bincount(group, minlength=len(predictions.classes)) for group in groups], axis=1)
    worst: dict[int, tuple[int, int]] = {}
    for label, pred, count in count_pairs(predictions):
        if label != pred and count > worst.get(label, (0, 0))[0]:
            worst[label] = (count, pred)
    rows = []
    for number, name in enumerate(predictions.classes):
        count, pred = worst.get(number, (0, -1))
        videos, correct, top5, predicted = counts[number].tolist()
        mistaken_for = predictions.classes[pred] if count else ""
        rows.append(ClassRow(name, videos, correct, top5, predicted, mistaken_for, count))
    return sorted(rows, key=lambda row: (row.num_videos == 0, row.accuracy if row.num_videos else 0.0))


def confused_pairs(predictions: Predictions, limit: int) -> list[Pair]:
    """The pairs of classes confused most often; of equal counts those of the smaller class first."""
    pairs = count_pairs(predictions)
    videos = np.bincount(predictions.labels[predictions.labels >= 0], minlength=len(predictions.classes))
    wrong = [Pair(label, pred, count, int(videos[label])) for label, pred, count in pairs if label != pred]
    return sorted(wrong, key=lambda p: (-p.count, p.num_videos, p.label, p.pred))[:limit]


def confident_mistakes(predictions: Predictions, limit: int) -> list[int]:
    """Places of the labelled videos that were predicted wrong, by falling score; NaN scores last."""
    wrong = np.flatnonzero((predictions.labels >= 0) & (predictions.labels != predictions.preds))
    order = np.argsort(-predictions.scores[wrong], kind="stable")[:limit]
    return [int(place) for place in wrong[order]]


def least_certain(predictions: Predictions, limit: int, *, without: Sequence[int] = ()) -> list[int]:
    """Places of the videos, right or wrong, whose predicted classes have the lowest scores, but for `without`."""
    order = np.argsort(predictions.scores, kind="stable")
    found = [int(place) for place in order[: limit + len(without)] if np.isfinite(predictions.scores[place])]
    return [place for place in found if place not in without][:limit]
