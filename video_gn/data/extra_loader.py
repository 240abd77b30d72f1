"""Training clips beside the training: a loader of its own, whose clips are a function of (seed, stream, start).

It takes nothing from the training's order, position, workers or random state, and gives it nothing. Clips are read
and broken videos replaced as in training, but no clip of a stream is ever one of the training's, or of another's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch.utils.data import DataLoader, Sampler

from video_gn.clips import ClipBatch
from video_gn.data.balance import BalancedOrder, occurrences
from video_gn.errors import ManifestError

if TYPE_CHECKING:
    from video_gn.data.datamodule import VideoDataModule

# Bits of a key's epoch: start, times that a record came before in the same order, rounds over the list, stream.
# Training's own keys have less than 2**64, and a stream's are above: numpy's seeds are integers of any size.
_OCCURRENCE, _ROUND, _STREAM = 32, 64, 96


class ExtraSampler(Sampler[tuple[int, int]]):
    """Keys (epoch, record) of one process: the list in random order, as often as the batches need.

    As in `TrainSampler`, the global batches do not depend on the number of processes as long as processes times batch
    size stays: rank r has the r-th part of each. No key comes twice.

    Args:
        num_records: records of the training set.
        batch_size: videos of a batch in one process.
        num_batches: batches of each process.
        seed: of the run.
        stream: 0 or above; one for each use.
        start: in [0, 2**32), such as the optimizer step.
        rank: of this process.
        world_size: number of processes.
        order: as of `TrainSampler`.

    Raises:
        ValueError: for a stream or start out of range.
    """

    def __init__(
        self,
        num_records: int,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        stream: int,
        start: int,
        rank: int = 0,
        world_size: int = 1,
        order: BalancedOrder | None = None,
    ) -> None:
        if stream < 0 or not 0 <= start < 1 << _OCCURRENCE:
            raise ValueError(f"stream must be 0 or above and start in [0, 2**32), got {stream!r} and {start!r}")
        self.num_records = num_records
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.first_epoch = (stream + 1 << _STREAM) + start
        self.rank = rank
        self.world_size = world_size
        self.order = order

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # Global batch b: | rank 0's videos | rank 1's | ...; a part may run over the list's end into its next round.
        per_step = self.batch_size * self.world_size
        made, keys = -1, []
        for batch in range(self.num_batches):
            first = batch * per_step + self.rank * self.batch_size
            for place in range(first, first + self.batch_size):
                rounds, within = divmod(place, self.num_records)
                if rounds != made:
                    made, keys = rounds, self._round(rounds)
                yield keys[within]

    def _round(self, number: int) -> list[tuple[int, int]]:
        epoch = self.first_epoch + (number << _ROUND)
        if self.order is None:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_records)
            return [(epoch, record) for record in order.tolist()]
        order = self.order(self.seed, epoch)
        # The same key would give the very same clip, as in `TrainSampler`.
        again = occurrences(order).tolist()
        return [(epoch + (n << _OCCURRENCE), record) for n, record in zip(again, order.tolist(), strict=True)]


def extra_train_loader(data: VideoDataModule, *, stream: int, start: int, num_batches: int) -> DataLoader[ClipBatch]:
    """Batches of training clips in the training's sizes, read by workers that end with the loader.

    Args:
        data: with its lists read.
        stream: as of `ExtraSampler`.
        start: as of `ExtraSampler`.
        num_batches: of each process.

    Raises:
        ManifestError: for a list without videos.
    """
    records = data.manifests["train"].records
    if not records:
        raise ManifestError(f"{data.manifests['train'].origin}: no training videos")
    rank, world_size = data._rank
    num_videos = data.batch_size // data.augment.repeats
    sampler = ExtraSampler(
        len(records),
        batch_size=num_videos,
        num_batches=num_batches,
        seed=data.seed,
        stream=stream,
        start=start,
        rank=rank,
        world_size=world_size,
        order=BalancedOrder(cast(Any, records).labels) if data.balance == "class" else None,
    )
    return data._loader(data.train_dataset(), sampler, num_videos, persistent=False)
