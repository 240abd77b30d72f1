"""Writes metrics.csv: one row for each logged optimizer step, once, also over kills and resumes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from video_gn.damage import set_damaged_aside
from video_gn.files import naming_unwritable, write_text
from video_gn.run.batch_change import clips_seen
from video_gn.run.checkpoints import RunCheckpoint
from video_gn.run.lightning_internals import callbacks_of, is_within_window
from video_gn.run.metrics_file import format_metrics, whole_metrics
from video_gn.shown import count

COLUMNS = ("step", "epoch", "lr", "train/loss", "val/loss", "val/top1", "val/top5", "clips")


class MetricsCSV(Callback):
    """Appends a row every `log_every_n_steps` optimizer steps and at every validation.

    A row is on disk before the checkpoint of its step is, so a resume only has to drop the rows after its checkpoint.
    The column `clips` counts those of the epoch.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._row: dict[str, Any] = {}
        self._offset = 0
        self._columns: list[str] = list(COLUMNS)
        self._losses: list[torch.Tensor] = []
        self._lr = float("nan")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows up to the step that the run resumes from, and drop later ones."""
        if not trainer.is_global_zero:
            return
        rows = self._kept()
        change = next((c.change for c in callbacks_of(trainer) if isinstance(c, RunCheckpoint)), None)
        if change is not None:
            rows = change.renumbered(rows)
            _log_again(trainer, rows)
        else:
            rows = [row for row in rows if row["step"] <= trainer.global_step]
        for row in rows:
            self._columns += [name for name in row if name not in self._columns]
        self._rewrite(rows)

    def _kept(self) -> list[dict[str, Any]]:
        """Rows that are there; a damaged file is set aside, and its rows before the damage are kept."""
        try:
            rows, problem = whole_metrics(self.path)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            rows, problem = [], str(error)
        if problem:
            kept = f"Kept: {count(len(rows), 'row')} before that, up to step {rows[-1]['step']}." if rows else ""
            set_damaged_aside(self.path, problem, kept or "The curves begin anew.")
        return rows

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have the rows up to this checkpoint on the disk before it is; without the file the run directory is gone."""
        if self._offset:  # written by this process
            with naming_unwritable(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note the learning rate of this step: its scheduler has moved on when the batch ends."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the row of an optimizer step: its loss is the mean over its clips."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        # Lightning divides each loss by the number of batches in the window, and adds them up.
        self._losses.append(loss.detach())
        if is_within_window(trainer):
            return
        losses, self._losses = self._losses, []
        if trainer.global_step % trainer.log_every_n_steps and trainer.global_step != 1:
            return
        loss = trainer.strategy.reduce(torch.stack(losses).sum(), reduce_op="mean")
        self._write(trainer, {"lr": self._lr, "train/loss": float(loss)})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the validation's figures to the row of its step."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self._write(trainer, values)

    def _write(self, trainer: Trainer, values: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        new = [name for name in values if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite(self._kept())
        step = trainer.global_step
        # Half a row of a killed run is cut off when it resumes.
        with naming_unwritable(self.path), self.path.open("r+b") as file:
            if self._row.get("step") == step:
                file.seek(self._offset)  # the row of this step again, with more in it
            else:
                self._offset = file.seek(0, os.SEEK_END)
                self._row = {"step": step, "epoch": trainer.current_epoch, "clips": clips_seen(trainer)}
            self._row.update(values)
            file.write(format_metrics([self._row], self._columns, header=False).encode())
            file.truncate()

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.path, format_metrics(rows, self._columns, header=True))
        self._row = rows[-1] if rows else {}
        tail = len(format_metrics(rows[-1:], self._columns, header=False).encode())
        self._offset = self.path.stat().st_size - tail


def _log_again(trainer: Trainer, rows: list[dict[str, Any]]) -> None:
    """Log the rows to TensorBoard by their present steps; its files of the former counting become a run beside it.

    A tracker keeps its points, and gets those of the present steps beside them.
    """
    for logger in trainer.loggers:
        if hasattr(logger, "renumber"):
            logger.renumber()
        if not isinstance(logger, TensorBoardLogger):
            continue
        directory = Path(logger.log_dir)
        earlier = directory / f"earlier-{1 + sum(1 for _ in directory.glob('earlier-*'))}"
        for events in directory.glob("events.out.*"):  # nothing has been logged yet: none is open
            earlier.mkdir(exist_ok=True)
            events.rename(earlier / events.name)
        for row in rows:
            figures = {name: value for name, value in row.items() if name not in ("step", "clips")}
            logger.log_metrics(figures, row["step"] - 1)  # Lightning's own count there begins at 0
