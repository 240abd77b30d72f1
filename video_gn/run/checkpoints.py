"""Writes the checkpoints of a training: whole files only, at places where resuming is exact.

A checkpoint taken during a validation or an epoch's end makes a resumed run skip or repeat Lightning's hooks. So a save
that falls due there waits until they are over, and the loops' state is written in one of two plain forms: between two
epochs, or between two batches of one.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from video_gn.checks import check_choice
from video_gn.errors import CheckpointError, ConfigError
from video_gn.files import remove_temporary, whole_file, whole_path
from video_gn.run.batch_change import BatchChange, clips_seen, find_change
from video_gn.run.checkpoint_files import read_plain
from video_gn.run.directory import BEST, CHECKPOINTS, LAST, STEPS
from video_gn.run.lightning_internals import (
    begin_epoch_anew,
    epoch_is_over,
    is_within_window,
    validates_by_time,
    validates_next,
    write_progress,
)
from video_gn.run.metrics_file import is_best


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name, then renames: a kill leaves the old file or the new one, never a part."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint of plain containers and tensors; a DiskFullError leaves the old file whole."""
        final = Path(path)
        remove_temporary(final.parent, name=final.name)  # of a killed process; the run directory is locked
        with whole_file(final, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU; nothing in it is executed, and its tensors are copies: the file may change.

        Raises:
            CheckpointError: If the file is damaged or holds more than plain containers and tensors.
        """
        return read_plain(Path(path), mapped=False)


def link(source: Path, target: Path) -> None:
    """Make `target` a second name of `source`'s present content, replacing `target` atomically."""
    with whole_path(target) as part:
        part.unlink()
        try:
            os.link(source, part)
        except OSError:  # a file system without hard links
            part.write_bytes(source.read_bytes())


class RunCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, `best.ckpt` by a validation figure, and some older steps.

    Args:
        directory: Directory of the checkpoints, `checkpoints/` of the run; filled in by the command line.
        every_n_steps: Optimizer steps between two saves of `last.ckpt`; the end of an epoch or validation saves too.
        keep_steps: Number of older saves to keep beside it as `step-*.ckpt`, the newest.
        monitor: Figure of the validation whose largest value makes `best.ckpt`; on a tie the latest.
    """

    def __init__(
        self,
        directory: str | None = None,
        every_n_steps: int = 500,
        keep_steps: int = 0,
        monitor: Literal["val/top1", "val/top5"] = "val/top1",
    ) -> None:
        if every_n_steps < 1 or keep_steps < 0:
            raise ValueError(
                f"every_n_steps must be at least 1 and keep_steps at least 0, got {every_n_steps} and {keep_steps}"
            )
        check_choice("checkpoint.monitor", monitor, ("val/top1", "val/top5"))
        self.directory = Path(directory or CHECKPOINTS)
        self.every_n_steps = every_n_steps
        self.keep_steps = keep_steps
        self.monitor = monitor
        self.best: float | None = None
        self.best_step = -1
        self.resumes = True
        self.saved_step: int | None = None  # of last.ckpt
        self.change: BatchChange | None = None  # since the checkpoint that the run resumes from
        self._validated = (-1, -1)  # epoch and clips of the last validation
        self._due = False
        self._new_best = False
        self._loaded_step = -2

    # ---- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far and its step, and where the last validation was."""
        return {"best": self.best, "best_step": self.best_step, "validated": list(self._validated)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best figure of a resumed run; another run's says nothing about this one."""
        if self.resumes:
            self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self._validated = tuple(state_dict.get("validated", self._validated))

    # ---- where a save may happen -------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the step to resume from, and its place in the epoch if the batch size changed; see `batch_change`.

        Raises:
            ConfigError: For a training that shall end before it.
            CheckpointError: For one whose optimizer or schedule Lightning would silently begin anew.
        """
        for name in ("optimizer_states", "lr_schedulers"):
            if len(checkpoint.get(name, [0])) != 1:  # without the key Lightning refuses it
                raise CheckpointError(
                    f"the checkpoint must have one entry in {name}, got {len(checkpoint[name])}. Take another one, or "
                    "start a new run from its weights (model.weights)."
                )
        self.change = find_change(trainer, checkpoint)
        if self.change is not None:
            self.change.apply(checkpoint)
            trainer.datamodule.load_state_dict(  # type: ignore[attr-defined]
                {"epoch": self.change.epoch, "batches": self.change.batches, "clips": self.change.clips}
            )
        self._loaded_step = self.saved_step = int(checkpoint["global_step"])
        _check_epochs(trainer, checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove temporary files and stale checkpoints of a killed run, even if training is complete."""
        if not trainer.is_global_zero:
            return
        remove_temporary(self.directory)
        last = self.directory / LAST
        from_last = trainer.ckpt_path is not None and last.is_file() and Path(trainer.ckpt_path).samefile(last)
        if self.resumes and self.change is not None:
            for kept in self.directory.glob(STEPS):
                kept.replace(kept.with_name(kept.name.replace("step-", "earlier-")))
        elif self.resumes and trainer.ckpt_path is not None:
            for later in self.directory.glob(STEPS):
                # Later steps than the one resumed from belong to an abandoned branch of the run.
                if int(later.stem.removeprefix("step-")) > self._loaded_step:
                    later.replace(later.with_name(later.name.replace("step-", "abandoned-")))
        if from_last and self.best_step == self._loaded_step:
            link(last, self.directory / BEST)  # a kill came between last.ckpt and best.ckpt

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the loops where the checkpoint stood; a ConfigError for validations inside an accumulation window."""
        _check_validation(trainer)
        if trainer.ckpt_path is None:
            return
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0:
            begin_epoch_anew(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save inside an epoch, unless a validation or the epoch's end comes right after."""
        if is_within_window(trainer):
            return
        self._due |= trainer.global_step % self.every_n_steps == 0
        if self._due and not validates_next(trainer) and not epoch_is_over(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the figure; save, unless the epoch's end comes right after."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val/")))
            raise ConfigError(f"checkpoint.monitor must be a figure of the validation ({known}), got {self.monitor!r}")
        self._validated = (trainer.current_epoch, clips_seen(trainer))
        if is_best(float(value), self.best):
            self.best, self.best_step, self._new_best = float(value), trainer.global_step, True
        if not epoch_is_over(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch's last hook; Lightning calls checkpoint callbacks last."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt` and its other names; called on every rank, where a save may happen."""
        if is_within_window(trainer):
            return  # a stop between two optimizer steps: no checkpoint holds the gradients of half a window
        self._due = False
        last = self.directory / LAST
        trainer.save_checkpoint(last)
        if trainer.is_global_zero:
            if self._new_best:
                link(last, self.directory / BEST)
            if self.keep_steps:
                link(last, self.directory / STEPS.replace("*", f"{trainer.global_step:08d}"))
                for old in sorted(self.directory.glob(STEPS))[: -self.keep_steps]:
                    with contextlib.suppress(FileNotFoundError):
                        old.unlink()
        self._new_best = False
        self.saved_step = trainer.global_step

    # ---- the two plain forms -----------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the loops' state as it is between two epochs, or between two batches of one."""
        datamodule = getattr(trainer, "datamodule", None)
        position = datamodule.state_dict() if datamodule is not None else {}
        if "batches" not in position or "fit_loop" not in checkpoint.get("loops", {}):
            return
        state = checkpoint["loops"]["fit_loop"]
        write_progress(state, epoch=position["epoch"], batches=position["batches"], step=trainer.global_step)


def _check_epochs(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Refuse to end before the checkpoint; a trial, which has one epoch, ends at it."""
    if "fit_loop" not in checkpoint.get("loops", {}):
        return
    done, wanted = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"], trainer.max_epochs
    if wanted is None or not 0 <= wanted < done:
        return
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise ConfigError(
            f"trainer.max_epochs must be at least {done}, the epochs that the checkpoint has, got {wanted}. Set more "
            f"than {done} to go on, or leave --ckpt_path out to train anew."
        )
    trainer.fit_loop.max_epochs = done


def _check_validation(trainer: Trainer) -> None:
    """Refuse validations inside an accumulation window: a checkpoint there would lose the window's gradients."""
    accumulate, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    every: float | None = trainer.val_check_batch
    if accumulate == 1 or every is None or math.isinf(every):
        return
    if validates_by_time(trainer):
        inside = True
    elif trainer.check_val_every_n_epoch is None:  # counted over the epochs
        inside = every % batches != 0 and (every % accumulate != 0 or batches % accumulate != 0)
    else:
        inside = every < batches and every % accumulate != 0
    if inside:
        raise ConfigError(
            "trainer.val_check_interval must fall between two optimizer steps (accumulate_grad_batches is "
            f"{accumulate}, an epoch has {batches} batches), got {trainer.val_check_interval!r}. "
            "Set a multiple, or 1.0."
        )
