"""Subsets and splits as index arithmetic: seeded, by class, or with whole groups on one side."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

# Number of draws; the one nearest to each class's share is taken. With Weizmann's 9 persons there are 36
# ways to hold out 2; with thousands of groups the first draw is near enough.
_NUM_DRAWS = 32


def strata(labels: np.ndarray, classes: Sequence[str], *, seed: int) -> list[np.ndarray]:
    """Indices of each class in a drawn order; records without a label, -1, are one more class.

    A class's order depends only on the seed, its name and its number of records: adding or removing a class does not
    change the draws of the others. Returns an int64 array for each class with records, in the order of their numbers.
    """
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[order], return_index=True)
    drawn = []
    for value, indices in zip(values, np.split(order, starts[1:]), strict=True):
        name = classes[value] if value >= 0 else ""
        rng = np.random.default_rng([seed, zlib.crc32(name.encode("utf-8", "surrogateescape"))])
        drawn.append(indices[rng.permutation(len(indices))])
    return drawn


def share(number: int, fraction: float) -> int:
    """The nearest integer to a fraction of a number, halves up, but at least 1."""
    return max(1, int(np.floor(number * fraction + 0.5)))


def pick_fraction(labels: np.ndarray, classes: Sequence[str], fraction: float, *, seed: int) -> np.ndarray:
    """What is kept, bool (n,): a part of each class, at least one record; a smaller fraction keeps a part of it."""
    keep = np.zeros(len(labels), dtype=bool)
    for indices in strata(labels, classes, seed=seed):
        keep[indices[: share(len(indices), fraction)]] = True
    return keep


def pick_stratified(labels: np.ndarray, classes: Sequence[str], fraction: float, *, seed: int) -> np.ndarray:
    """What goes to validation, bool (n,): at least one record of each class that has two, and never all."""
    held = np.zeros(len(labels), dtype=bool)
    for indices in strata(labels, classes, seed=seed):
        held[indices[: min(share(len(indices), fraction), len(indices) - 1)]] = True
    return held


def pick_grouped(labels: np.ndarray, groups: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """What goes to validation, bool (n,): whole groups, at least one on each side, each class's part near the fraction.

    `labels` are int (n,), -1 or a class's number; `groups` int (n,), 0 <= group < number of groups, at least 2 of them.
    """
    sizes = np.bincount(groups)
    wanted = fraction * np.bincount(labels + 1)
    rng = np.random.default_rng(seed)
    best, best_distance = np.zeros(len(labels), dtype=bool), np.inf
    for _ in range(_NUM_DRAWS):
        order = rng.permutation(len(sizes))
        filled = np.cumsum(sizes[order])[:-1]
        num_held = int(np.argmin(np.abs(filled - fraction * len(labels)))) + 1
        chosen = np.zeros(len(sizes), dtype=bool)
        chosen[order[:num_held]] = True
        held = chosen[groups]
        distance = np.abs(np.bincount(labels[held] + 1, minlength=len(wanted)) - wanted).sum()
        if distance < best_distance:
            best, best_distance = held, distance
    return best
