"""Several ranks in one run: who logs, and that all of them have the same data and checkpoint."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from video_gn.errors import CheckpointError, ManifestError
from video_gn.lists.manifest import Manifest


class RankLog(Callback):
    """Log filter for distributed runs: rank 0 logs everything, other ranks only warnings, prefixed with their rank.

    Until the loops start, other ranks log errors alone: their warnings would repeat rank 0's.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.is_starting = True

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Filter all that the package logs."""
        handlers = list(logging.getLogger("video_gn").handlers)
        for handler in handlers:
            handler.addFilter(self)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print a record; `logging` calls this."""
        if self.rank == 0:
            return True
        if record.levelno < (logging.ERROR if self.is_starting else logging.WARNING):
            return False
        prefix = f"rank {self.rank}: "
        if not str(record.msg).startswith(prefix):
            record.msg = f"{prefix}{record.msg}"
        return True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on each rank reads videos that no other one reads."""
        self.is_starting, self.rank = False, trainer.global_rank

    on_validation_start = on_test_start = on_predict_start = on_train_start


def gather_objects(mine: Any, world_size: int) -> list[Any]:
    """`mine` of each rank, in their order; all must call it."""
    if world_size == 1:
        return [mine]
    everyones: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyones, mine)
    return everyones


class SameData(Callback):
    """Refuses ranks that read other files than rank 0: they would train on other clips, or wait for ever.

    Compares the lists and the checkpoint before anything is read: names and labels, not directories, since a node may
    have its own copy of the data elsewhere. `step` is that of the checkpoint found in `run_dir`, 0 without one.
    """

    def __init__(self, manifests: Mapping[str, Manifest], *, run_dir: Path, step: int) -> None:
        self.manifests = manifests
        self.run_dir = run_dir
        self.step = step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare: a ManifestError on a rank whose list differs from rank 0's, a CheckpointError for the checkpoint."""
        if trainer.world_size == 1:
            return
        mine = {
            part: (len(manifest.records), manifest.digest(of_copies=True)) for part, manifest in self.manifests.items()
        }
        node, step, first = trainer.strategy.broadcast((os.uname().nodename, self.step, mine))
        if step != self.step:
            raise CheckpointError(
                f"{self.run_dir}: the checkpoint must be the same on all nodes, got step {self.step} on "
                f"{os.uname().nodename} and step {step} on {node}. Give a --run_dir that all nodes see."
            )
        for part, found in mine.items():
            theirs = first.get(part, (0, ""))
            if found == theirs:
                continue
            counts = f"{found[0]} here, on {os.uname().nodename}, and {theirs[0]} on {node}"
            raise ManifestError(
                f"{self.manifests[part].origin}: the {part} list must have the same videos on all nodes, got "
                f"{counts if found[0] != theirs[0] else f'others on {os.uname().nodename} than on {node}'}. Put the "
                "same files on each."
            )
