"""Resumes with another batch size, accumulation or number of ranks than the checkpoint was written with.

The place in the epoch stays, counted in clips: it is rounded down to a whole global batch of the present setting, and
the number of clips that are seen again is logged. The clips' order depends on the seed alone, so all others of the
epoch come once, and if the global batch stays the same none comes again.

**Steps are counted by clips.** After a change the global step is what a run with the present setting would have
counted at that place: epochs done times its steps of an epoch, and the steps within. So everything given in steps or
epochs (schedule, `max_steps`, `every_n_steps`, `averaging.start_step`) means the same clips as before; rows of
metrics.csv take their new steps, and if several fall on one the last stays. `step-*.ckpt` files of the former counting
are renamed to `earlier-*.ckpt`.

Refused inside an epoch: another `data.augment.repeats`, since the order is one of videos.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lightning import Trainer

from video_gn.errors import ConfigError
from video_gn.run.lightning_internals import write_progress

log = logging.getLogger(__name__)


# ---- the place in an epoch -----------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """How an epoch is cut into batches, and these into optimizer steps."""

    clips: int  # clips of a batch on all ranks
    accumulate: int  # batches of an optimizer step; the last step of an epoch may have fewer
    batches: int  # batches of an epoch

    @property
    def clips_per_step(self) -> int:
        """The global batch."""
        return self.clips * self.accumulate

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.batches // self.accumulate)

    def describe(self) -> dict[str, int]:
        """Plain numbers for a checkpoint."""
        return {"clips_per_batch": self.clips, "accumulate": self.accumulate, "batches_per_epoch": self.batches}

    def step_at(self, epoch: int, clips: int) -> int:
        """Optimizer steps that a run with this cut has taken after so many clips of an epoch, rounded up."""
        return epoch * self.steps + min(-(-clips // self.clips_per_step), self.steps)


def present_cut(datamodule: Any, trainer: Any) -> Cut:
    """The cut of a run, as Lightning will count it; the data module has read its lists."""
    videos = datamodule.batch_size // datamodule.augment.repeats * trainer.world_size
    batches, limit = len(datamodule.manifests["train"].records) // videos, trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return Cut(datamodule.batch_size * trainer.world_size, trainer.accumulate_grad_batches, batches)


def clips_seen(trainer: Any) -> int:
    """Clips of the present epoch that a training has seen; 0 without a data module of this package."""
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", 0)
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready * batch_size * trainer.world_size)


def batches_to_skip(cut: Cut, *, clips: int, validates: Callable[[int], bool], validated: int) -> int:
    """Batches of an epoch after which a run resumes, if another cut has seen some of the epoch's clips.

    ```
    20 clips seen, steps of 8    | 8 | 8 | 8 | ...  -> after 2 batches, 4 clips are seen again
    ```

    Lightning would take a validation right there as done: unless it was, the step before it is repeated too. So is an
    epoch's last step, since its end has a validation and hooks to come.

    `clips` of the epoch were seen; `validates` says whether a validation comes after that many batches of it, and
    `validated` after how many clips the last one was done, -1 without one. Returns a multiple of `cut.accumulate`.
    """
    steps = max(0, min(clips // cut.clips_per_step, (cut.batches - 1) // cut.accumulate))
    if steps and validates(steps * cut.accumulate) and validated != steps * cut.clips_per_step:
        steps -= 1
    return steps * cut.accumulate


# ---- the change ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchChange:
    """What has changed since a checkpoint, and where the run resumes."""

    old: Cut
    new: Cut
    epoch: int
    seen: int  # clips of the present epoch, by the checkpoint
    batches: int  # of the new cut, after which the run resumes
    step: int  # of the checkpoint

    @property
    def clips(self) -> int:
        """Clips of the epoch after which the run resumes."""
        return self.batches * self.new.clips

    @property
    def new_step(self) -> int:
        """The checkpoint's step in the run's counting."""
        return self.new.step_at(self.epoch, self.clips)

    def text(self) -> str:
        """The change in a line."""
        again = self.seen - self.clips
        return (
            f"the global batch was {self.old.clips_per_step} clips ({self.old.clips} x {self.old.accumulate} "
            f"accumulated), now it is {self.new.clips_per_step} ({self.new.clips} x {self.new.accumulate}): resuming "
            f"in epoch {self.epoch + 1} after {self.clips} of the {self.seen} clips seen; {again} clips are seen "
            f"again. Step {self.step} counts as step {self.new_step} from now on"
        )

    def renumbered(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of metrics.csv up to the place where the run resumes, with the run's own steps.

        They come in any counting; one without "clips" is in the old one.
        """
        kept: dict[int, dict[str, Any]] = {}
        for row in rows:
            epoch = row["epoch"]
            clips = row.get("clips", (row["step"] - epoch * self.old.steps) * self.old.clips_per_step)
            if (epoch, clips) <= (self.epoch, self.clips):
                step = self.new.step_at(epoch, clips)
                kept[step] = {**kept.get(step, {}), **row, "step": step}
        return list(kept.values())

    def apply(self, checkpoint: dict[str, Any]) -> None:
        """Give a checkpoint this place and counting, before Lightning restores it."""
        step = checkpoint["global_step"] = self.new_step
        state = checkpoint["loops"]["fit_loop"]
        state["epoch_loop.batch_progress"]["total"]["processed"] = self.epoch * self.new.batches + self.batches
        write_progress(state, epoch=self.epoch, batches=self.batches, step=step)
        within = -(-self.batches // self.new.accumulate)
        optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for progress in (*optimizer.values(), state["epoch_loop.scheduler_progress"]):
            for scope, count in (("total", step), ("current", within)):
                progress[scope].update(dict.fromkeys(progress[scope], count))
        for scheduler in checkpoint["lr_schedulers"]:
            scheduler.update(last_epoch=step, _step_count=step + 1)
        for callback in checkpoint["callbacks"].values():
            if callback.get("best_step") == self.step:
                callback["best_step"] = step
            if "latest_update_step" in callback:  # of averaging, which waits for later steps than this one
                callback["latest_update_step"] = min(callback["latest_update_step"], step)


def find_change(trainer: Trainer, checkpoint: dict[str, Any]) -> BatchChange | None:
    """The change since a checkpoint that a fit resumes from, once its lists are read; None if nothing differs.

    A change that is refused is a ConfigError.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    position = checkpoint.get(type(datamodule).__qualname__, {})
    if "clips_per_batch" not in position or trainer.state.fn != "fit":
        return None
    old = Cut(position["clips_per_batch"], position["accumulate"], position["batches_per_epoch"])
    new = present_cut(datamodule, trainer)
    if position["clips"] and position["repeats"] != datamodule.augment.repeats:
        raise ConfigError(
            f"data.augment.repeats must stay {position['repeats']} inside an epoch, got {datamodule.augment.repeats}. "
            "Resume with it, or from a checkpoint between two epochs."
        )
    if (old.clips, old.accumulate) == (new.clips, new.accumulate):
        return None
    epoch, step = position["epoch"], checkpoint["global_step"]
    validations = [state["validated"] for state in checkpoint.get("callbacks", {}).values() if "validated" in state]
    batches = batches_to_skip(
        new,
        clips=position["clips"],
        validates=lambda done: _validates(trainer, new, epoch, done),
        validated=max((clips for of_epoch, clips in validations if of_epoch == epoch), default=-1),
    )
    change = BatchChange(old, new, epoch, position["clips"], batches, step)
    if trainer.is_global_zero:
        log.warning("%s", change.text())
    return change


def _validates(trainer: Any, cut: Cut, epoch: int, batches: int) -> bool:
    """Whether Lightning validates after that many batches of an epoch."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
    if not trainer.limit_val_batches or not isinstance(interval, int | float) or (every and (epoch + 1) % every):
        return False
    period = interval if isinstance(interval, int) else max(1, int(cut.batches * interval))
    return (batches if every else epoch * cut.batches + batches) % period == 0
