"""Which records a process reads, in which order: a function of (seed, epoch) alone, without a random state.

Balanced training: each class has an endless list, its records shuffled, shuffled again, and so on. An epoch takes from
each list where the epoch before stopped, so that over any number of epochs the records of a class come equally often,
up to one: a class of which an epoch takes only a part is seen whole over several.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler, SequentialSampler

Indices = npt.NDArray[np.int64]
Order = Callable[[int, int], Indices]

# Keep the shuffles apart from other streams that are seeded by the same numbers.
_CLASSES, _LIST, _ORDER = 0x62616C30, 0x62616C31, 0x62616C32
# Bits of a key's epoch: epoch or start, times that a record came before in the same order, rounds, stream.
# Training's own keys are below 2**64, and a stream's above: numpy's seeds are integers of any size.
_OCCURRENCE, _ROUND, _STREAM = 32, 64, 96


@dataclass(eq=False)
class TrainSampler(SequentialSampler):  # Lightning replaces any other kind under `overfit_batches`
    """Keys (epoch, record) of one process: a permutation of the records for each epoch.

    The global batches do not depend on the number of processes as long as processes times batch size stays the same:
    rank r has the r-th part of each. The last incomplete global batch is left out.

    Args:
        batch_size: videos of a batch in one process.
        start_epoch: epoch of the first iteration; `set_epoch` sets that of later ones.
        start_batch: batches of `start_epoch` that training has already used.
        order: (seed, epoch) -> records of the epoch, int64 (num_records,), some perhaps several times; None for a
            permutation.
        same_each_epoch: every epoch has the clips of the first, in its order.
    """

    num_records: int
    _: KW_ONLY
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    start_epoch: int = 0
    start_batch: int = 0
    order: Order | None = None
    same_each_epoch: bool = False

    def __post_init__(self) -> None:
        self.epoch = self.start_epoch
        self.num_batches = self.num_records // (self.batch_size * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Keys of a whole epoch, even if the first iteration starts inside one: Lightning relies on it."""
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        batches = range(self.start_batch if self.epoch == self.start_epoch else 0, self.num_batches)
        epoch = 0 if self.same_each_epoch else self.epoch
        records, again = _shuffled(self.order, self.seed, epoch, self.num_records)
        for place in _places(batches, self.batch_size, self.rank, self.world_size):
            yield epoch + (int(again[place]) << _OCCURRENCE), int(records[place])


@dataclass(eq=False)
class ExtraSampler(Sampler[tuple[int, int]]):
    """Keys (epoch, record) for clips beside the training: the list in random order, as often as the batches need.

    Takes nothing from the training's order, position or random state. No key comes twice, nor is one of training's or
    of another stream's. Global batches are divided among ranks as in `TrainSampler`.

    Args:
        batch_size: videos of a batch in one process.
        num_batches: batches of each process.
        stream: 0 or above; one for each use.
        start: in [0, 2**32), such as the optimizer step.
        order: as for `TrainSampler`.
    """

    num_records: int
    _: KW_ONLY
    batch_size: int
    num_batches: int
    seed: int
    stream: int
    start: int
    rank: int = 0
    world_size: int = 1
    order: Order | None = None

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        made = -1
        for place in _places(range(self.num_batches), self.batch_size, self.rank, self.world_size):
            # A batch may run over the list's end into its next round.
            rounds, within = divmod(place, self.num_records)
            if rounds != made:
                made, epoch = rounds, (self.stream + 1 << _STREAM) + self.start + (rounds << _ROUND)
                records, again = _shuffled(self.order, self.seed, epoch, self.num_records)
            yield epoch + (int(again[within]) << _OCCURRENCE), int(records[within])


def _places(batches: range, batch_size: int, rank: int, world_size: int) -> Iterator[int]:
    """Places of a rank's clips in the global order, of which each batch is | rank 0's clips | rank 1's | ..."""
    for batch in batches:
        start = (batch * world_size + rank) * batch_size
        yield from range(start, start + batch_size)


def _shuffled(order: Order | None, seed: int, epoch: int, num_records: int) -> tuple[Indices, Indices]:
    """The records of an epoch, and how often each came before in it: the same key would give the same clip."""
    if order is None:
        return np.random.default_rng([seed, epoch]).permutation(num_records), np.zeros(num_records, dtype=np.int64)
    records = order(seed, epoch)
    return records, occurrences(records)


class EvalSampler(SequentialSampler):  # as for `TrainSampler`
    """Every record once over all processes: rank r has r, r + world_size, ...; nothing is padded.

    A process without any record gets the key -1, for which the data set gives an empty sample: Lightning hangs on a
    loader without batches. Records to `leave_out` are done; the rest is divided in the same way.
    """

    def __init__(
        self, num_records: int, *, rank: int = 0, world_size: int = 1, leave_out: Collection[int] = ()
    ) -> None:
        left = [key for key in range(num_records) if key not in leave_out] if leave_out else range(num_records)
        self.keys = left[rank::world_size] or [-1]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys)


# ---- balanced classes ----------------------------------------------------------------------------


def epoch_order(seed: int, epoch: int, labels: npt.NDArray[np.integer]) -> Indices:
    """The records of one epoch, as many as there are, each class equally often up to one.

    The classes that come once more than the others change from epoch to epoch, so that over all epochs the classes
    stay within one of each other. Classes without records are skipped.

    Args:
        seed: seed of the run, 0 or above.
        epoch: 0 or above.
        labels: integers (n,), the class of each record, n >= 1; none is -1.

    Returns:
        int64 (n,), in random order; records of small classes come several times, see `occurrences`.
    """
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
    """How often each entry's record has come before in the same order: 0 the first time, then 1, 2, ...; int64 (n,)."""
    by_record = np.argsort(order, kind="stable")
    _, starts, counts = np.unique(order[by_record], return_index=True, return_counts=True)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[by_record] = np.arange(len(order)) - np.repeat(starts, counts)
    return numbers
