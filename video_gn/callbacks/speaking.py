"""Who speaks, where several processes do the same: the first one, and each other one of its own videos."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from lightning import Callback


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's number in its launch, before any of them talk to each other; 0 where nothing tells.

    Args:
        environment: of torchrun (RANK), srun (SLURM_PROCID) or Lightning's own launcher (LOCAL_RANK), which has no
            number over all nodes: there a process that is not the first of the first node is at least 1.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return int(environment.get("LOCAL_RANK") or 0) + int(environment.get("NODE_RANK") or 0)


class OneSpeaks(Callback):
    """Other processes than the first say nothing of a start, and afterwards only what is wrong, with their number.

    Args:
        rank: of this process in the launch.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.is_starting = True

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Look at all that the package says."""
        handlers = list(logging.getLogger("video_gn").handlers)
        for handler in handlers:
            handler.addFilter(self)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is told; `logging` calls this."""
        if self.rank == 0:
            return True
        if record.levelno < (logging.ERROR if self.is_starting else logging.WARNING):
            return False
        prefix = f"process {self.rank}: "
        if not str(record.msg).startswith(prefix):
            record.msg = f"{prefix}{record.msg}"
        return True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on each process has videos of its own."""
        self.is_starting, self.rank = False, trainer.global_rank

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """As `on_train_start`."""
        self.on_train_start(trainer, pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """As `on_train_start`."""
        self.on_train_start(trainer, pl_module)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """As `on_train_start`."""
        self.on_train_start(trainer, pl_module)
