"""Which keys a process reads, in which order: no worker, and no random state, has a say in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
from torch.utils.data import Sampler

from video_gn.data.balance import occurrences


class TrainSampler(Sampler[tuple[int, int]]):
    """Keys (epoch, record) of one process: a permutation of the records for each epoch.

    The global batches are the same whatever the number of processes, as long as processes times
    batch size stays: rank r has its r-th part. The last incomplete global batch is left out.

    Args:
        num_records: records of the training set.
        batch_size: clips of a batch in one process.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        start_epoch: epoch at which the first iteration begins; later ones are told by `set_epoch`.
        start_batch: batches of `start_epoch` that have been trained on already.
        order: (seed, epoch) -> records of the epoch, int64 (num_records,), some perhaps several times; None for a
            permutation.
    """

    def __init__(
        self,
        num_records: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_epoch: int = 0,
        start_batch: int = 0,
        order: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self.order = order
        self.num_records = num_records
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_epoch = start_epoch
        self.start_batch = start_batch
        self.epoch = start_epoch
        self.num_batches = num_records // (batch_size * world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Keys of a whole epoch, also where the first iteration starts inside one: Lightning counts on it."""
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        if self.order is None:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_records)
            epochs = np.full(self.num_records, epoch)
        else:
            order = self.order(self.seed, epoch)
            # The same key gives the very same clip: a record's second time in an epoch bears another number.
            epochs = epoch + (occurrences(order) << 32)
        per_step = self.batch_size * self.world_size
        first = self.start_batch if epoch == self.start_epoch else 0
        for batch in range(first, self.num_batches):
            start = batch * per_step + self.rank * self.batch_size
            for place in range(start, start + self.batch_size):
                yield int(epochs[place]), int(order[place])


class EvalSampler(Sampler[int]):
    """Every record once over all processes: rank r has r, r + world_size, ...; nothing is padded.

    A process without any record gets the key -1, which the data set answers with an empty sample:
    Lightning hangs on a loader without batches.

    Args:
        num_records: records to evaluate.
        rank: of this process.
        world_size: number of processes.
        leave_out: records that are done; those that are left are shared out in the same way.
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
