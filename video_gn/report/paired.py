"""Compares two tests video by video: McNemar's exact test, the difference and its interval, classes gained and lost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from video_gn.errors import RunError
from video_gn.report.analysis import Predictions, wilson_interval
from video_gn.shown import count, shown


@dataclass(frozen=True)
class ClassChange:
    """One class in two tests of the same videos."""

    name: str
    num_videos: int
    first_right: int
    other_right: int

    @property
    def gained(self) -> int:
        """Videos that the other run has right in addition; negative if it has fewer."""
        return self.other_right - self.first_right


@dataclass(frozen=True)
class Pairs:
    """The labelled videos that two runs tested, and those that one of them did not."""

    first: np.ndarray  # int64 (n,), places of the videos in the first run's predictions
    other: np.ndarray  # int64 (n,), the same in the other's
    first_right: np.ndarray  # bool (n,)
    other_right: np.ndarray  # bool (n,)
    only_first: list[str]  # paths of the videos that the first run alone tested
    only_other: list[str]
    num_unlabelled: int  # videos that both tested, without a label
    classes: list[ClassChange]  # those with videos, the most gained first

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Videos that both have right, the first alone, the other alone, and none."""
        a, b = self.first_right, self.other_right
        return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())


def pair(first: Predictions, other: Predictions, names: tuple[str, str]) -> Pairs:
    """Pair two tests' videos by path; `names` of the runs for errors.

    A path that is listed several times, such as for its segments, is paired in order if both tests have it as often. It
    is a RunError if no video is common, none of them has a label, or their labels differ.
    """
    keys, places = _keys(first), {key: place for place, key in enumerate(_keys(other))}
    common = [(place, places.pop(key)) for place, key in enumerate(keys) if key in places]
    if not common:
        raise RunError(
            f"runs must have tested the same videos, got none that {names[0]} and {names[1]} share: "
            f"{shown(first.videos[0])!r} and {shown(other.videos[0])!r} are their first ones. Videos are paired by "
            "path: test both with the same list."
        )
    rows, others = np.array(common, dtype=np.int64).T
    labels, other_labels = _label_names(first, rows), _label_names(other, others)
    wrong = np.flatnonzero(labels != other_labels)
    if len(wrong):
        place = int(wrong[0])
        said = [f"{shown(text)!r}" if text else "none" for text in (labels[place], other_labels[place])]
        raise RunError(
            f"labels of the tested videos must be the same in all runs, got {said[0]} in {names[0]} and {said[1]} in "
            f"{names[1]} for {shown(first.videos[rows[place]])!r}, and {count(len(wrong), 'video')} in all that "
            "differ. Test both with the same list."
        )
    labelled = first.labels[rows] >= 0
    if not labelled.any():
        raise RunError(f"tested videos must have labels to be compared, got none in {names[0]} and {names[1]}.")
    paired = set(rows.tolist())
    rows, others = rows[labelled], others[labelled]
    right, other_right = (p.labels[r] == p.preds[r] for p, r in ((first, rows), (other, others)))
    of_class = (first.labels[rows], first.labels[rows][right], first.labels[rows][other_right])
    counts = np.stack([np.bincount(group, minlength=len(first.classes)) for group in of_class], axis=1).tolist()
    changes = [ClassChange(name, *numbers) for name, numbers in zip(first.classes, counts, strict=True) if numbers[0]]
    return Pairs(
        first=rows,
        other=others,
        first_right=right,
        other_right=other_right,
        only_first=[video for place, video in enumerate(first.videos) if place not in paired],
        only_other=[path for path, _, _ in places],
        num_unlabelled=int((~labelled).sum()),
        # Of equal counts the smaller class first, of which they are more.
        classes=sorted(changes, key=lambda c: (-c.gained, c.num_videos if c.gained > 0 else -c.num_videos)),
    )


def _keys(predictions: Predictions) -> list[tuple[str, int, int]]:
    """(path, how often it occurred before, how often it occurs) of each video."""
    total, seen, keys = Counter(predictions.videos), Counter[str](), []
    for video in predictions.videos:
        keys.append((video, seen[video], total[video]))
        seen[video] += 1
    return keys


def _label_names(predictions: Predictions, places: np.ndarray) -> np.ndarray:
    return np.array([*predictions.classes, ""], dtype=object)[predictions.labels[places]]


def check_classes(first: Predictions, other: Predictions, sizes: Sequence[int | None], names: tuple[str, str]) -> None:
    """Raise RunError for runs whose lists of classes differ in length, or have more names together than one list.

    `sizes` are the lists' lengths as far as they are known; a test's files hold the names that occurred in it.
    """
    advice = "Compare runs that were trained with the same classes."
    if None not in sizes and sizes[0] != sizes[1]:
        raise RunError(
            f"classes must be the same in all runs, got {sizes[0]} in {names[0]} and {sizes[1]} in {names[1]}. {advice}"
        )
    together = {*first.classes, *other.classes}
    if sizes[0] is not None and sizes[0] == sizes[1] and len(together) > sizes[0]:
        strange = sorted(set(other.classes) - set(first.classes))
        raise RunError(
            f"classes must be the same in all runs, got {len(together)} names in {names[0]} and {names[1]}, whose "
            f"networks have {sizes[0]} classes; {shown(strange[0])!r} is one of {names[1]} alone. {advice}"
        )


# ---- statistics ----------------------------------------------------------------------------------


def mcnemar(first_alone: int, other_alone: int) -> float:
    """Two-sided p-value of McNemar's exact test: that both runs are equally likely to be the one that is right.

    Twice the binomial probability of at most so few of n = first_alone + other_alone at 1/2, at most 1; exact integers.
    Source: McNemar 1947; the exact conditional form in Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13:91.
    """
    n = first_alone + other_alone
    term = total = 1
    for k in range(1, min(first_alone, other_alone) + 1):
        term = term * (n - k + 1) // k
        total += term
    return min(1.0, 2 * total / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are, in their order.

    Source: Holm 1979, the step-down method.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def difference_interval(both: int, first_alone: int, other_alone: int, none: int) -> tuple[float, float]:
    """95% confidence interval of the other run's accuracy minus the first's, on the same videos.

    From both accuracies' Wilson intervals and the correlation phi of being right.
    Source: Newcombe 1998, Statistics in Medicine 17:2635, method 10 (phi with its correction for continuity).
    """
    n = both + first_alone + other_alone + none
    first, other = both + first_alone, both + other_alone
    (low_1, high_1), (low_2, high_2) = wilson_interval(first, n), wilson_interval(other, n)
    p_1, p_2 = first / n, other / n
    product = first * (n - first) * other * (n - other)
    excess = both * none - first_alone * other_alone
    phi = (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(product) if product else 0.0

    def distance(one: float, two: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * two + two**2))

    return p_2 - p_1 - distance(p_2 - low_2, high_1 - p_1), p_2 - p_1 + distance(high_2 - p_2, p_1 - low_1)
