"""Going on with another batch size, accumulation or number of processes than the checkpoint was written with.

What stays is the place in the epoch, in clips: it is rounded down to a whole global batch of the present setting, and
the clips that are seen again are counted and told. The clips' order is the seed's alone, so all others of the epoch
come once, and where the global batch stays the same none comes again.

**Steps are counted by clips.** After a change the global step is what a run with the present setting would have
counted at that place: epochs done times its steps of an epoch, and the steps within. Everything that is given in
steps or epochs (schedule, `max_steps`, `every_n_steps`, `averaging.start_step`) so means the same clips as before;
rows of metrics.csv take their new steps, and where several fall on one the last stays. `step-*.ckpt` files of the
former counting are renamed to `earlier-*.ckpt`.

Refused inside an epoch: another `data.augment.repeats`, since the order is one of videos.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lightning import Trainer

from video_gn.errors import ConfigError
from video_gn.run.position import Cut, batches_to_skip, present_cut

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchChange:
    """What has changed since a checkpoint, and where the run goes on.

    Args:
        old: the checkpoint's cut of an epoch.
        new: the run's.
        epoch: epochs done.
        seen: clips of the epoch under way that the checkpoint has seen.
        batches: of the new cut that the run goes on after.
        step: the checkpoint's.
    """

    old: Cut
    new: Cut
    epoch: int
    seen: int
    batches: int
    step: int

    @property
    def clips(self) -> int:
        """Clips of the epoch that the run goes on after."""
        return self.batches * self.new.clips

    @property
    def new_step(self) -> int:
        """The checkpoint's step as the run counts."""
        return self.new.step_at(self.epoch, self.clips)

    def told(self) -> str:
        """The change in a line."""
        again = self.seen - self.clips
        return (
            f"the global batch was {self.old.clips_per_step} clips ({self.old.clips} x {self.old.accumulate} "
            f"accumulated), now it is {self.new.clips_per_step} ({self.new.clips} x {self.new.accumulate}): going on "
            f"in epoch {self.epoch} after {self.clips} of the {self.seen} clips seen; {again} clips are seen again. "
            f"Step {self.step} counts as step {self.new_step} from here on"
        )

    def renumbered(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of metrics.csv up to the place where the run goes on, by its own steps.

        Args:
            rows: in any counting; one without "clips" is of the old one.
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
        """Make a checkpoint, before it is restored, one of this place and counting."""
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
    """What differs from a checkpoint that a fit goes on from; None where nothing does.

    Args:
        trainer: with its data module's lists read.
        checkpoint: its whole content.

    Raises:
        ConfigError: for a change that is refused.
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
            "Go on with it, or from a checkpoint between two epochs."
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
        log.warning("%s", change.told())
    return change


def _validates(trainer: Any, cut: Cut, epoch: int, batches: int) -> bool:
    """Whether Lightning validates after so many batches of an epoch."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
    if not trainer.limit_val_batches or not isinstance(interval, int | float) or (every and (epoch + 1) % every):
        return False
    period = interval if isinstance(interval, int) else max(1, int(cut.batches * interval))
    return (batches if every else epoch * cut.batches + batches) % period == 0


def write_progress(state: dict[str, Any], *, epoch: int, batches: int, step: int) -> None:
    """Write the loops' state as it is between two epochs, or between two batches of one.

    Args:
        state: of the fit loop; its total of processed batches is taken as it is.
        epoch: epochs done.
        batches: of the epoch under way that are done.
        step: the global step.
    """
    for scope in ("total", "current"):
        started = epoch + (batches > 0)
        state["epoch_progress"][scope].update(ready=started, started=started, processed=epoch, completed=epoch)
    progress = state["epoch_loop.batch_progress"]
    progress["is_last_batch"] = False
    # With `completed` one behind, Lightning takes a checkpoint as one of a training batch's end.
    progress["current"].update(ready=batches, started=batches, processed=batches, completed=max(0, batches - 1))
    total = progress["total"]["processed"]
    progress["total"].update(ready=total, started=total, completed=total - (batches > 0))
    # Lightning adds the step under way on resuming inside an epoch, and not between epochs.
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step - (batches > 0)
