"""Stops a training after a signal: all ranks at the same optimizer step, with one checkpoint to resume from. And says
why a training ended.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer

from video_gn.errors import StoppedError
from video_gn.run.checkpoints import RunCheckpoint
from video_gn.run.directory import BEST, LAST
from video_gn.run.lightning_internals import epoch_is_over, is_within_window, log_batch, validates_next
from video_gn.run.signals import StopFlag

log = logging.getLogger(__name__)


class Preemption(Checkpoint):
    """Ends a fit after a signal: at the end of the optimizer step under way, once the checkpoint is written; logs why a
    fit ended without one.

    A signal may reach one rank alone, or each at another moment: after every optimizer step all ranks ask each other,
    in a gloo group, so that nobody waits for a GPU's queue.

    If a validation comes next, or is under way, the run ends at once and resumes from the checkpoint before: one
    between the last step and its validation would lose that validation. The run does wait for an epoch's end.

    Under SLURM, SIGUSR1 is the signal that comes before a time limit (`--signal=USR1@120`): the job is then requeued.
    SIGTERM comes with a preemption, where SLURM requeues by itself, and with scancel, where nobody wants it.

    The run's `checkpoint` is listed before this callback.
    """

    def __init__(self, flag: StopFlag, checkpoint: RunCheckpoint, *, requeue: Callable[[], None]) -> None:
        self.flag = flag
        self.checkpoint = checkpoint
        self.requeue = requeue
        self._has_begun = False
        self._group: Any = None
        self._waiting = contextlib.ExitStack()
        self._waited_seconds = 0.0  # from the first rank's signal until all have agreed
        self._agreed_seconds = 0.0  # by time.monotonic

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal waits for the step's end."""
        self._has_begun = True
        self._waiting.enter_context(self.flag.waiting("step"))
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if a signal has come to any rank, unless the epoch's end comes right after."""
        if is_within_window(trainer) or not self._asked():
            return
        if validates_next(trainer):
            log_batch(trainer)
            self._stop(trainer)
        if not epoch_is_over(trainer):
            if self.checkpoint.saved_step != trainer.global_step:
                self.checkpoint.save(trainer)
            log_batch(trainer)
            self._stop(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop at once, without asking others: ranks may have different numbers of validation batches."""
        if self.flag.number and trainer.state.fn == "fit":
            self._note_agreed(time.monotonic() - self.flag.since_seconds)
            self._stop(trainer, together=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal has come to any rank; the epoch's end has been saved."""
        if self._asked():
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on there is nothing to save."""
        self._waiting.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log why the training ended, or did not begin."""
        if trainer.is_global_zero:
            step, reason = trainer.global_step, why_ended(trainer)
            if self._has_begun:
                log.info("training ended at step %d: %s", step, reason)
                if self.checkpoint.best is None and trainer.limit_val_batches:
                    log.warning("no validation was due before the end: there is no %s, tests take %s", BEST, LAST)
            else:
                log.warning("nothing was trained: the checkpoint is of step %d, and %s", step, reason)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A second signal must not wait for a step that never comes."""
        self._waiting.close()

    def _asked(self) -> bool:
        """Whether a signal has come to any rank; all ranks take it over."""
        waited = time.monotonic() - self.flag.since_seconds if self.flag.number else 0.0
        if self._group is not None:
            found = torch.tensor([self.flag.number, waited], dtype=torch.float64)
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=self._group)
            self.flag.number, waited = int(found[0]), float(found[1])
        if self.flag.number:
            self._note_agreed(waited)
        return self.flag.number != 0

    def _note_agreed(self, waited_seconds: float) -> None:
        self._waited_seconds, self._agreed_seconds = waited_seconds, time.monotonic()

    def _stop(self, trainer: Trainer, *, together: bool = True) -> NoReturn:
        number, step = self.flag.number, self.checkpoint.saved_step
        self.flag.leave()
        name = signal.Signals(number).name
        if step is None:
            saved = "Nothing was saved yet."
        else:
            saved = f"{self.checkpoint.directory / LAST} is of step {step}; --ckpt_path last resumes from it."
        if trainer.is_global_zero:  # before the requeue, which may cut the output off
            saving = time.monotonic() - self._agreed_seconds
            log.info("%s: %.2f s to the step's end, %.2f s to save", name, self._waited_seconds, saving)
        if number == signal.SIGUSR1 and (trainer.is_global_zero or not together):
            self.requeue()
        if together and self._group is not None:
            torch.distributed.barrier(self._group)  # srun ends the others when one has left
        raise StoppedError(f"{name}: stopped after step {trainer.global_step}. {saved}", status=128 + number)


def why_ended(trainer: Any) -> str:
    """Why a fit ended by itself, in a few words that name the setting."""
    if not trainer.should_stop:
        name = "max_steps" if 0 <= trainer.max_steps <= trainer.global_step else "max_epochs"
        return f"trainer.{name} is {getattr(trainer, name)}"
    for callback in trainer.callbacks:
        left_seconds = callback.time_remaining() if isinstance(callback, Timer) else None
        if left_seconds is not None and left_seconds <= 0:
            return "the time of trainer.max_time is over"
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            # Its last sentence speaks to Lightning.
            return f"EarlyStopping: {callback.stopping_reason_message.partition(' Signaling')[0]}"
    return "a callback asked for it"
