"""Counts the broken videos of a training, which others replace, and stops it above a limit."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from video_gn.clips import ClipBatch
from video_gn.damage import DAMAGE, check_file, in_words, set_damaged_aside
from video_gn.errors import RunError
from video_gn.files import whole_file
from video_gn.run.ranks import gather_objects
from video_gn.shown import count, csv_line, from_csv_cell

log = logging.getLogger(__name__)


class BrokenVideos(Callback):
    """Counts and logs the training videos that could not be decoded; stops the run above a limit.

    The limit is a fraction of the training list, in [0, 1]; each video counts once, over all ranks. A csv file
    (path, reason) keeps them beyond the run; it is written only if there are any.
    """

    def __init__(self, max_fraction: float, paths: Iterable[str], *, table: Path | None = None) -> None:
        self.table = table
        self.max_fraction = max_fraction
        self.paths = frozenset(paths)
        self.num_videos = len(self.paths)
        self.broken: dict[str, str] = {}
        self._unshared = 0

    def state_dict(self) -> dict[str, Any]:
        """Paths found broken so far, and why."""
        return {"broken": dict(self.broken)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the checkpoint's videos, but for those no longer listed."""
        self.broken = {path: reason for path, reason in state_dict["broken"].items() if path in self.paths}

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        """Log new failures; compare with the limit."""
        news = False
        for failure in batch.failures:
            if failure.path not in self.broken:
                self.broken[failure.path] = failure.reason
                self._unshared += 1
                news = True
                log.warning(
                    "training: %s could not be read (%s); another video takes its place; %d of %d broken so far",
                    failure.path, failure.reason, len(self.broken), self.num_videos,
                )  # fmt: skip
        if news and trainer.is_global_zero:
            self._write()
        if trainer.world_size > 1:
            # All ranks must stop at the same step, and asking at each one would wait for the device.
            if (batch_idx + 1) % trainer.log_every_n_steps and batch_idx + 1 < trainer.num_training_batches:
                return
            self._share(trainer)
        if len(self.broken) > self.max_fraction * self.num_videos:
            names = "; ".join(f"{path}: {reason}" for path, reason in list(self.broken.items())[:5])
            raise RunError(
                f"{len(self.broken)} of {self.num_videos} training videos could not be read, more than "
                f"data.max_broken_fraction = {self.max_fraction:g} allows ({names}). "
                "Repair or remove them, or raise the limit."
            )

    def _share(self, trainer: Trainer) -> None:
        anything = torch.tensor(self._unshared, device=trainer.strategy.root_device, dtype=torch.float32)
        if float(trainer.strategy.reduce(anything, reduce_op="sum")) == 0:
            return
        self._unshared = 0
        for other in gather_objects(self.broken, trainer.world_size):
            self.broken.update(other)
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        """Write all of them, also those that an earlier, killed process of this run found after its checkpoint."""
        if self.table is None:
            return
        rows = _read_table(self.table) | self.broken
        with whole_file(self.table) as file:
            file.writelines(map(csv_line, [("path", "reason"), *rows.items()]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many there were."""
        if self.broken and trainer.is_global_zero:
            log.warning("%d of %d training videos could not be read", len(self.broken), self.num_videos)


def _read_table(path: Path) -> dict[str, str]:
    """Reasons by path, up to a damaged row; then the file is set aside."""
    rows: dict[str, str] = {}
    try:
        check_file(path)
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file, strict=True):
                rows[from_csv_cell(row["path"])] = from_csv_cell(row["reason"])
    except FileNotFoundError:
        pass
    except DAMAGE as error:
        set_damaged_aside(path, in_words(error), f"Kept are the {count(len(rows), 'row')} before that.")
    return rows
