"""Where in an epoch a training stands, counted in clips, so that another batch size can go on from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cut:
    """How an epoch is cut into batches, and these into optimizer steps.

    Args:
        clips: of a batch of all processes.
        accumulate: batches of an optimizer step; the last step of an epoch may have fewer.
        batches: of an epoch.
    """

    clips: int
    accumulate: int
    batches: int

    @property
    def clips_per_step(self) -> int:
        """The global batch."""
        return self.clips * self.accumulate

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.batches // self.accumulate)

    def describe(self) -> dict[str, int]:
        """What a checkpoint keeps of it."""
        return {"clips_per_batch": self.clips, "accumulate": self.accumulate, "batches_per_epoch": self.batches}

    def step_at(self, epoch: int, clips: int) -> int:
        """Optimizer steps that a run with this cut has taken where so many clips of an epoch were seen, rounded up."""
        return epoch * self.steps + min(-(-clips // self.clips_per_step), self.steps)


def present_cut(datamodule: Any, trainer: Any) -> Cut:
    """The cut of a run, as Lightning will count it.

    Args:
        datamodule: with its lists read.
        trainer: of the run.
    """
    videos = datamodule.batch_size // datamodule.augment.repeats * trainer.world_size
    batches, limit = len(datamodule.manifests["train"].records) // videos, trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return Cut(datamodule.batch_size * trainer.world_size, trainer.accumulate_grad_batches, batches)


def clips_seen(trainer: Any) -> int:
    """Clips of the epoch under way that a training has seen; 0 without one of this package's data modules."""
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", 0)
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready * batch_size * trainer.world_size)


def batches_to_skip(cut: Cut, *, clips: int, validates: Callable[[int], bool], validated: int) -> int:
    """Batches of an epoch that a run goes on after, where another cut has seen some of the epoch's clips.

    ```
    20 clips seen, steps of 8    | 8 | 8 | 8 | ...  -> after 2 batches, 4 clips are seen again
    ```

    A validation right there would be taken as done: unless it was, the step before it is done again too. So is an
    epoch's last step, since its end has a validation and hooks to come.

    Args:
        cut: of the run.
        clips: that were seen.
        validates: batches of the epoch -> whether a validation comes after them.
        validated: clips of the epoch after which the last validation was done; -1 without one.

    Returns:
        A multiple of `cut.accumulate`, below `cut.batches`.
    """
    steps = max(0, min(clips // cut.clips_per_step, (cut.batches - 1) // cut.accumulate))
    if steps and validates(steps * cut.accumulate) and validated != steps * cut.clips_per_step:
        steps -= 1
    return steps * cut.accumulate
