"""Who speaks, where several processes do the same: the first one, and each other one of its own videos."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from lightning import Callback


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

    on_validation_start = on_test_start = on_predict_start = on_train_start
