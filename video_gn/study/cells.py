"""A cell's directory: what it was run with, how far it is, and who runs it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video_gn import files as locks
from video_gn.errors import ConfigError, RunError
from video_gn.files import write_json
from video_gn.study.plan import Cell, Study
from video_gn.study.settings import differences

# In the order of a cell's life; "changed" stands beside them.
STATES = ("open", "begun", "running", "failed", "done", "changed")
_LOCK = ".cell.lock"
# Who asks whether a cell is held holds it for a moment: a first refusal may mean nothing more.
_PROBE_SECONDS = 0.5


@dataclass
class CellRecord:
    """A cell's cell.json.

    Args:
        settings: all of its settings, flat: the base's content, the study's, the command line's.
        extra: keys of those that came from the command line.
        fit_done: whether its training has come to its end.
        failed: the last attempt's exit status and last words; None where there was no failure.
        sessions: [start, end] of each attempt, seconds since 1970; the end is None until it is known.
    """

    settings: dict[str, Any]
    extra: list[str] = field(default_factory=list)
    fit_done: bool = False
    failed: str | None = None
    sessions: list[list[float | None]] = field(default_factory=list)

    @property
    def minutes(self) -> float:
        """Of all attempts together."""
        return sum(end - start for start, end in self.sessions if start is not None and end is not None) / 60


class CellDirectory:
    """OUT/cells/NAME: a run directory, and beside its files cell.json and log.txt.

    Args:
        out: the study's directory.
        cell: of the plan.
    """

    def __init__(self, out: Path, cell: Cell) -> None:
        self.cell = cell
        self.path = Path(out) / "cells" / cell.name
        self.log = self.path / "log.txt"
        self.metrics = self.path / "test" / "metrics.json"

    def read(self) -> CellRecord | None:
        """What was run here; None where nothing was.

        Raises:
            RunError: for a cell.json that is damaged.
        """
        path = self.path / "cell.json"
        try:
            return CellRecord(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{path} cannot be read ({error}). Remove {self.path} to run the cell again.") from error

    def write(self, record: CellRecord) -> None:
        """Write cell.json under its name only when it is whole."""
        write_json(self.path / "cell.json", vars(record))

    def changes(self, study: Study, record: CellRecord) -> list[str]:
        """Lines "key: old -> new" of what the cell was run with and what the study says now.

        Without further settings on the command line, those of the run are taken as meant.
        """
        return self._changes(study, record, () if study.words else record.extra)

    def _changes(self, study: Study, record: CellRecord, ignore: Sequence[str]) -> list[str]:
        if not record.fit_done and not (self.path / "checkpoints" / "last.ckpt").is_file():
            return []  # nothing was trained with the old settings: a path that was wrong may be mended
        return differences(record.settings, study.resolved(self.cell), ignore=ignore)

    def check_unchanged(self, study: Study) -> None:
        """Refuse to go on with what was begun with other settings; the command line's must have come again.

        Args:
            study: the plan.

        Raises:
            ConfigError: it names the settings; also for a run that is none of a study's.
        """
        record = self.read()
        if record is None:
            if (self.path / "checkpoints").is_dir():
                raise ConfigError(f"{self.path} holds a run without cell.json: move it away, or choose another --out.")
            return
        lines = self._changes(study, record, ())
        if lines:
            raise ConfigError(
                f"cell {self.cell.index}, {self.cell.name}, was begun with other settings: {'; '.join(lines)}. "
                f"Undo the change, choose another --out, or remove {self.path} to run the cell again."
            )

    def is_done(self) -> bool:
        """Whether training and test have come to their end, with whatever settings."""
        record = self.read()
        return record is not None and record.fit_done and record.failed is None and self.metrics.is_file()

    def state(self, study: Study) -> str:
        """One of `STATES`."""
        record = self.read()
        changed = record is not None and bool(self.changes(study, record))
        if self.is_done():
            return "changed" if changed else "done"
        if self.holder():
            return "running"
        if record is None:
            return "open"
        return "changed" if changed else "failed" if record.failed else "begun"

    # ---- who runs it -------------------------------------------------------------------------

    def holder(self) -> str | None:
        """Who runs the cell, or its training or test; None where nobody does."""
        found = (locks.holder(self.path / name) for name in (_LOCK, ".lock", "test/.lock"))
        return next((holder for holder in found if holder), None)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the cell; the kernel lets go of it also after a kill.

        Raises:
            RunError: where another process runs it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            file = locks.hold(self.path / _LOCK, wait_seconds=_PROBE_SECONDS)
        except locks.HeldError as error:
            raise RunError(
                f"cell {self.cell.index}, {self.cell.name}, is being run by another process "
                f"({error.holder}). Wait for it, or stop it first."
            ) from error
        with file:
            yield

    # ---- its clock ---------------------------------------------------------------------------

    def begin(self, record: CellRecord) -> None:
        """Start an attempt; one that was killed ended when it last wrote."""
        for session in record.sessions:
            if session[1] is None:
                session[1] = max(self._last_sign(), float(session[0] or 0.0))
        record.sessions.append([time.time(), None])
        record.failed = None
        self.write(record)

    def end(self, record: CellRecord, failed: str | None) -> None:
        """End an attempt."""
        record.sessions[-1][1] = time.time()
        record.failed = failed
        self.write(record)

    def _last_sign(self) -> float:
        signs = (self.log, self.path / "metrics.csv", self.path / "checkpoints" / "last.ckpt")
        return max((sign.stat().st_mtime for sign in signs if sign.exists()), default=0.0)
