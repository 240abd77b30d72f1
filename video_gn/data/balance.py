"""An epoch's order in which every class comes equally often, as a function of (seed, epoch) alone.

Each class has an endless list: its records shuffled, shuffled again, and so on. An epoch takes from each
list where the epoch before stopped, so that the records of a class come equally often up to one, over any
number of epochs: a class that an epoch takes only a part of is seen whole over several.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

# Keeps the shuffles apart from other streams that are seeded by the same numbers.
_CLASSES, _LIST, _ORDER = 0x62616C30, 0x62616C31, 0x62616C32


def epoch_order(seed: int, epoch: int, labels: npt.ArrayLike) -> Indices:
    """The records of one epoch, as many as there are, each class equally often up to one.

    Which classes come once more than the others goes around from epoch to epoch, so that over all epochs
    the classes stay within one of each other. Classes without records are passed over. Nothing but the
    arguments has a say in it: it is equal for every process, and any part of it can be made again.

    Args:
        seed: of the run, 0 or above.
        epoch: 0 or above.
        labels: integers (n,), the class of each record.

    Returns:
        int64 (n,), in random order; records of small classes come several times, see `occurrences`.

    Raises:
        ValueError: for a negative number, labels that are not a list of integers, or no labels.
        TypeError: for a seed or epoch that is no integer.
    """
    seed, epoch = _count("seed", seed), _count("epoch", epoch)
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0:
        raise ValueError(f"labels must be integers (n,), at least one, got {labels.dtype} {labels.shape}")
    if labels.min() < 0:
        raise ValueError(f"labels must be 0 or above, got {labels.min()}. Balanced training needs one for each video.")
    # Stable, so that a class's records stand in the order of the list.
    by_class = np.argsort(labels, kind="stable")
    classes, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    share, rest = divmod(len(labels), len(classes))
    places = np.random.default_rng([seed, _CLASSES]).permutation(len(classes)).tolist()
    parts = []
    for label, start, count, place in zip(classes.tolist(), starts.tolist(), counts.tolist(), places, strict=True):
        first = epoch * share + _turns(epoch * rest, place, len(classes))
        stop = (epoch + 1) * share + _turns((epoch + 1) * rest, place, len(classes))
        within = _stretch(seed, label, count, first, stop)
        parts.append(by_class[start : start + count][within])
    order = np.concatenate(parts).astype(np.int64)
    return order[np.random.default_rng([seed, epoch, _ORDER]).permutation(len(order))]


def _turns(num_turns: int, place: int, num_places: int) -> int:
    """How many of turns 0, 1, ..., num_turns - 1 fall to a place, going around."""
    return (num_turns - place + num_places - 1) // num_places


def _stretch(seed: int, label: int, count: int, first: int, stop: int) -> Indices:
    """Numbers first to stop of a class's endless list, int64 in [0, count)."""
    if first == stop:
        return np.zeros(0, dtype=np.int64)
    shuffles = range(first // count, (stop - 1) // count + 1)
    whole = np.concatenate([np.random.default_rng([seed, label, i, _LIST]).permutation(count) for i in shuffles])
    return whole[first - shuffles.start * count : stop - shuffles.start * count]


def occurrences(order: Indices) -> Indices:
    """How often each entry's record has come before in the same order: 0 the first time, then 1, 2, ...

    A clip is a function of (seed, epoch, record): the second time it must be asked for under another key,
    or it would be the very same clip.

    Args:
        order: int64 (n,).

    Returns:
        int64 (n,).
    """
    by_record = np.argsort(order, kind="stable")
    _, starts, counts = np.unique(order[by_record], return_index=True, return_counts=True)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[by_record] = np.arange(len(order)) - np.repeat(starts, counts)
    return numbers


@dataclass(frozen=True)
class BalancedOrder:
    """`epoch_order` of a list, in the form that a sampler calls: (seed, epoch) -> order.

    Args:
        labels: integers (n,), the class of each record; not written to afterwards.

    Raises:
        ValueError: as `epoch_order`.
    """

    labels: npt.NDArray[np.integer]

    def __post_init__(self) -> None:
        epoch_order(0, 0, self.labels)  # bad labels are an error here, not at the first batch

    def __len__(self) -> int:
        return len(self.labels)

    def __call__(self, seed: int, epoch: int) -> Indices:
        """The records of one epoch, int64 (n,)."""
        return epoch_order(seed, epoch, self.labels)


def _count(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < 0:
        raise ValueError(f"{name} must be 0 or above, got {value!r}")
    return number
