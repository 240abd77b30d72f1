"""The directory of a cell or a pre-training: its settings, its state, its clock, and the process that runs it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from video_gn import files as locks
from video_gn.damage import DAMAGE, in_words, read_object
from video_gn.errors import ConfigError, RunError
from video_gn.files import write_json
from video_gn.run.directory import CHECKPOINTS, LAST, LOCK, METRICS, TEST_LOCK, TEST_METRICS
from video_gn.study.plan import CELLS, PRETRAIN, SYNTHETIC, Cell, Study
from video_gn.study.settings import TRAIN, differences

log = logging.getLogger(__name__)

_LOCK = ".cell.lock"
# A process that only asks whether a cell is held holds it for a moment: wait before refusing.
_PROBE_SECONDS = 0.5


class CellHeldError(RunError):
    """Another process runs the cell."""


@dataclass
class CellRecord:
    """The contents of cell.json."""

    settings: dict[str, Any]  # all flat settings: those of the base, of the study and of the command line
    extra: list[str] = field(default_factory=list)  # keys of those from the command line
    fit_done: bool = False  # whether the training is complete
    failed: str | None = None  # exit status and last line of the last attempt; None if it did not fail
    # [start, end] of each attempt, seconds since 1970; the end is None until it is known
    sessions: list[list[float | None]] = field(default_factory=list)
    sha256: str | None = None  # of a pre-training's last checkpoint, once its training is complete

    @property
    def minutes(self) -> float:
        """Duration of all attempts together."""
        return sum(end - start for start, end in self.sessions if start is not None and end is not None) / 60


def _read(directory: Path) -> CellRecord | None:
    path = directory / "cell.json"
    try:
        record = CellRecord(**read_object(path))
        if not (isinstance(record.settings, dict) and isinstance(record.extra, list) and record.minutes >= 0):
            raise ValueError("its entries are not those of a cell")
        return record
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        problem = f"{path} cannot be read ({in_words(error)})"
        raise RunError(f"{problem}. Move {directory} away to run the cell again.") from error


def _was_trained(directory: Path, record: CellRecord | None) -> bool:
    return record is not None and (record.fit_done or (directory / CHECKPOINTS / LAST).is_file())


class CellDirectory:
    """OUT/cells/NAME or OUT/pretrain/NAME: a run directory with two more files, cell.json and log.txt."""

    def __init__(self, out: Path, cell: Cell) -> None:
        self.cell = cell
        self.out = Path(out)
        self.path = self.out / cell.folder / cell.name
        self.start = None if cell.start is None else CellDirectory(out, cell.start)
        if cell.any_clip and not self.path.exists():
            # Trained with another clip, such as one of a command line that is not repeated now.
            found = [path.parent for path in self.path.parent.glob(f"{cell.any_clip}/cell.json")]
            found = [path for path in found if _was_trained(path, _read(path))]
            if len(found) == 1:
                self.path, self.cell = found[0], replace(cell, name=found[0].name)
        self.log = self.path / "log.txt"
        self.metrics = self.path / TEST_METRICS

    def read(self) -> CellRecord | None:
        """What was run here, None if nothing was; a RunError for a cell.json that is damaged."""
        return _read(self.path)

    def write(self, record: CellRecord) -> None:
        """Write cell.json under its name only when it is whole."""
        write_json(self.path / "cell.json", vars(record))

    def recorded(self, study: Study) -> dict[str, Any]:
        """What its result follows from, flat: all settings of the cell, and the pre-training that it starts from."""
        record = None if self.start is None else self.start.read()
        digest = {} if record is None or record.sha256 is None else {"pretrain.sha256": record.sha256}
        return {**study.resolved(self.cell), **self.cell.origin, **digest}

    def changes(self, study: Study, record: CellRecord, *, counts_extra: bool = False) -> list[str]:
        """Lines "key: old -> new" of the settings of the run that differ from those of the study now.

        If the command line has no further settings, those of the run do not count, unless `counts_extra`.
        """
        if not _was_trained(self.path, record):
            return []  # nothing was trained with the old settings: a wrong path may be corrected
        ignore = [] if study.words or counts_extra else record.extra
        if self.cell.folder == PRETRAIN and self.is_done():
            ignore = [*record.extra, *study.extra]  # whichever machine made it, cells start from the same weights
        if TRAIN in ignore:
            ignore = [*ignore, *(key for key in self.cell.origin if key.startswith(f"{SYNTHETIC}."))]
        return differences(record.settings, self.recorded(study), ignore=ignore)

    def check_unchanged(self, study: Study) -> None:
        """Raise ConfigError for a run of other settings, also of the command line, or that no study started."""
        record = self.read()
        if record is None:
            if (self.path / CHECKPOINTS).is_dir():
                raise ConfigError(f"{self.path} holds a run without cell.json: move it away, or choose another --out.")
            return
        lines = self.changes(study, record, counts_extra=True)
        if lines:
            it = "the cell" if self.cell.folder == CELLS else "it"
            raise ConfigError(
                f"{self.cell.title} was started with other settings: {'; '.join(lines)}. "
                f"Undo the change, choose another --out, or remove {self.path} to run {it} again."
            )

    def checkpoint_digest(self) -> str | None:
        """SHA-256 of the last checkpoint; None without one."""
        from video_gn.weights.named import file_digest

        path = self.path / CHECKPOINTS / LAST
        return file_digest(path) if path.is_file() else None

    def is_done(self) -> bool:
        """Whether training and test are complete, with whatever settings."""
        record = self.read()
        return record is not None and record.fit_done and record.failed is None and self.metrics.is_file()

    def state(self, study: Study) -> str:
        """How far the cell is: "open", "started", "running", "failed" or "done"; "changed" if its settings differ."""
        record = self.read()
        changed = record is not None and bool(self.changes(study, record))
        if self.is_done():
            return "changed" if changed else "done"
        if self.holder():
            return "running"
        if record is None:
            return "open"
        return "changed" if changed else "failed" if record.failed else "started"

    # ---- the process that runs it ------------------------------------------------------------

    def holder(self) -> str | None:
        """The process that runs the cell, its training or its test, in words; None if none does."""
        return self._holder_of(_LOCK, LOCK, TEST_LOCK)

    def _holder_of(self, *names: str) -> str | None:
        return next(filter(None, (locks.holder(self.path / name) for name in names)), None)

    @contextlib.contextmanager
    def held(self, *, wait_seconds: float = _PROBE_SECONDS) -> Iterator[None]:
        """Hold the cell's lock, which the kernel releases even after a kill; another process is waited for.

        So is a training or a test that outlives the process that started it.

        Raises:
            CellHeldError: if another process runs the cell.
            RunError: if the directory cannot be written.
        """
        with contextlib.ExitStack() as stack:
            try:
                with locks.naming_unwritable(self.path / _LOCK):
                    self.path.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locks.hold(self.path / _LOCK, wait_seconds=wait_seconds))
                    self._wait_for_run(max(wait_seconds, locks.LEFT_OVER_SECONDS))
            except locks.HeldError as error:
                raise CellHeldError(
                    f"{self.cell.title} is being run by another process ({error.holder}). Wait for it, or stop it "
                    "first."
                ) from error
            yield

    def _wait_for_run(self, seconds: float) -> None:
        """Wait for a training or a test that outlives the process that started it."""
        begin, is_told = time.monotonic(), False
        while run := self._holder_of(LOCK, TEST_LOCK):
            waited = time.monotonic() - begin
            if waited >= seconds:
                raise locks.HeldError(run)
            if waited >= 1 and not is_told:
                is_told = True
                log.info("%s is still being run by an earlier start (%s): waiting", self.cell.title.rstrip(","), run)
            time.sleep(0.05)

    # ---- its clock ---------------------------------------------------------------------------

    def begin(self, record: CellRecord) -> None:
        """Start an attempt; the end of a killed one is when it last wrote a file."""
        files = (self.log, self.path / METRICS, self.path / CHECKPOINTS / LAST)
        for session in record.sessions:
            if session[1] is None:
                written = (file.stat().st_mtime for file in files if file.exists())
                session[1] = max([float(session[0] or 0.0), *written])
        record.sessions.append([time.time(), None])
        record.failed = None
        self.write(record)

    def end(self, record: CellRecord, failed: str | None) -> None:
        """End an attempt."""
        record.sessions[-1][1] = time.time()
        record.failed = failed
        self.write(record)
