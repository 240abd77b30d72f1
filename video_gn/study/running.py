"""Runs cells: each is a `fit`, which resumes from its last checkpoint, and a `test` of the last checkpoint.

What a cell needs is made before it: synthetic videos, and its pre-training, which is run in the same way.
"""

from __future__ import annotations

import logging
import math
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from video_gn.damage import DAMAGE, in_words, read_object
from video_gn.errors import ConfigError, RunError
from video_gn.files import hold, naming_unwritable, remove_temporary
from video_gn.run.directory import CHECKPOINTS, LAST
from video_gn.run.signals import StopFlag
from video_gn.shown import count
from video_gn.study.cells import CellDirectory, CellHeldError, CellRecord
from video_gn.study.plan import CELLS, SYNTHETIC, Cell, Study
from video_gn.study.settings import OUT, TRAIN, as_word

log = logging.getLogger(__name__)

# (words after `video-gn`, file to append its output to) -> exit status.
Runner = Callable[[Sequence[str], Path], int]
# Exit status of a test whose results are valid, though some videos could not be read.
_SOME_UNREADABLE = 3
# Terminal codes in a cell's output: colours, and carriage returns of progress bars.
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
# Time for a child to write its last lines after Ctrl-C or SIGTERM.
_GRACE_SECONDS = 20.0


def run_child(words: Sequence[str], log_path: Path) -> int:
    """Run `video-gn WORDS...` in a child process, append its output to the log, and return its exit status.

    The status is negative for a signal. A signal to this process, as from SLURM, ends the child too, whose last
    checkpoint stays; then it raises StoppedError.
    """
    flag = StopFlag()
    with log_path.open("ab") as file, flag.installed():
        child = subprocess.Popen(
            [sys.executable, "-m", "video_gn", *words], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        return flag.wait_for(child, grace_seconds=_GRACE_SECONDS)


def words_of(study: Study, directory: CellDirectory) -> list[str]:
    """A cell's options on the command line, the same for fit and test."""

    def placed(value: Any) -> Any:
        is_inside = isinstance(value, str) and value.startswith(OUT)
        return str(directory.out / value.removeprefix(OUT)) if is_inside else value

    return [
        "-c",
        str(study.base_path),
        f"--run_dir={directory.path}",
        *(as_word(key, placed(value)) for key, value in directory.cell.settings.items()),
        *study.words,
        # The test uses the last checkpoint too: `best` would be chosen by the very videos that are tested.
        "--ckpt_path=last",
    ]


def run_cell(study: Study, directory: CellDirectory, *, runner: Runner = run_child) -> str | None:
    """Train and test a cell, or what is left of that, and return what failed; the caller holds its lock."""
    record = directory.read() or CellRecord({})
    # Settings that may change between attempts are recorded as the last one had them.
    record.settings, record.extra = directory.recorded(study), sorted(study.extra)
    directory.begin(record)
    words = words_of(study, directory)
    failed = None
    if not record.fit_done:
        failed = _step(["fit", *words], directory, runner)
        record.fit_done = failed is None
        if record.fit_done and directory.cell.folder != CELLS:
            record.sha256 = directory.checkpoint_digest()
        directory.write(record)
    if failed is None:
        failed = _step(["test", *words], directory, runner)
    directory.end(record, failed)
    return failed


def _step(words: list[str], directory: CellDirectory, runner: Runner) -> str | None:
    with directory.log.open("a", encoding="utf-8") as file:
        file.write(f"$ video-gn {shlex.join(words)}\n")
    start = directory.log.stat().st_size
    status = runner(words, directory.log)
    if status == 0 or (status == _SOME_UNREADABLE and words[0] == "test"):
        return None
    return f"{words[0]} ended with exit status {status}: {_last_line(directory.log, start)}"


def _last_line(path: Path, start: int) -> str:
    """The last line of a command's output past `start` bytes, or its last error if it printed one."""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - 20_000))
        lines = [_CONTROLS.sub("", line).strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if "error:" in line.lower()]
    return (errors or lines or ["no output"])[-1]


# ---- a list of cells -------------------------------------------------------------------------


def run_cells(study: Study, out: Path, cells: Sequence[Cell], *, runner: Runner = run_child) -> list[str]:
    """Run cells one after another; finished ones are not run again, a failing one does not stop the others.

    Returns:
        A line for each cell that failed.

    Raises:
        ConfigError: before anything is run, if a cell or its pre-training was started with other settings.
        RunError: for a single cell that another process runs.
        StoppedError: after a signal.
    """
    directories = [CellDirectory(out, cell) for cell in cells]
    for directory in directories:
        if directory.start is not None and study.pretrain is not None:
            directory.start.check_unchanged(study.pretrain)
        directory.check_unchanged(study)
    done = [directory.cell.name for directory in directories if directory.state(study) == "done"]
    log.info("%s: %d of %d cells, %d of them finished; %s", study.path, len(cells), study.num_cells, len(done), out)
    run, failures = _Run(study, out, runner), []
    for number, directory in enumerate(directories):
        title = _title(directory.cell, study)
        left = [d.cell for d in directories[number:] if d.cell.name not in done]
        if directory.cell.name in done:
            log.info("%s: finished before, %s", title, _outcome(directory))
            continue
        try:
            failed = run.cell(directory, left)
        except RunError as error:
            if len(cells) == 1:
                raise
            if isinstance(error, CellHeldError):
                log.warning("%s", error)
                continue
            failed = str(error)
        if failed is not None:
            failures.append(f"{directory.cell.name}: {failed}")
            log.error("%s failed: %s", title, failed)
    return failures


class _Run:
    """Runs cells, each after what it needs."""

    def __init__(self, study: Study, out: Path, runner: Runner) -> None:
        self.study, self.out, self.runner = study, out, runner
        self.failed: dict[str, str] = {}  # what failed, by the name of the pre-training: each is tried once
        self.has_videos = False

    def cell(self, directory: CellDirectory, left: Sequence[Cell]) -> str | None:
        """Run a cell, the first of those left, after its pre-training; returns what failed."""
        ahead, after = (partial(_estimate, self.study, self.out, cells) for cells in (left, left[1:]))
        with directory.held():
            return self._pretrain(directory, ahead) or self._attempt(self.study, directory, ahead, after)

    def _pretrain(self, directory: CellDirectory, ahead: Callable[[], str]) -> str | None:
        """Have the pre-training complete that a cell's training starts from, by this process or another one."""
        start, record, study = directory.start, directory.read(), self.study.pretrain
        if start is None or study is None or (record is not None and record.fit_done):
            return None
        name = start.cell.name
        if name not in self.failed and not start.is_done():
            with start.held(wait_seconds=math.inf):
                failed = self._attempt(study, start, ahead, ahead)
            if failed is not None:
                self.failed[name] = failed
                log.error("%s failed: %s", start.cell.title, failed)
        if name in self.failed:
            return f"its pre-training {name} failed: {self.failed[name]}"
        trained, digest = start.read(), start.checkpoint_digest()
        if trained is not None and digest is not None and digest == trained.sha256:
            return None
        what = "is missing" if digest is None else "is not the one that the pre-training ended with"
        return f"{start.path / CHECKPOINTS / LAST} {what}. Put it back, or remove {start.path} to pre-train again"

    def _attempt(
        self, study: Study, directory: CellDirectory, ahead: Callable[[], str], after: Callable[[], str]
    ) -> str | None:
        """Run a cell or a pre-training that this process holds; returns what failed."""
        title = _title(directory.cell, study)
        if directory.is_done():
            log.info("%s: finished by another process, %s", title, _outcome(directory))
            return None
        directory.check_unchanged(study)  # another process may have started it in the meantime
        self._make_videos(study, directory)
        log.info("%s: %s%s", title, "resuming" if directory.read() else "training", ahead())
        failed = run_cell(study, directory, runner=self.runner)
        if failed is None:
            log.info("%s: %s%s", title, _outcome(directory), after())
        return None if failed is None else f"{failed} (see {directory.log})"

    def _make_videos(self, study: Study, directory: CellDirectory) -> None:
        """Make the synthetic videos that a training reads, unless they are there; other processes wait."""
        if self.has_videos or study.synthetic is None or TRAIN not in directory.cell.settings:
            return
        from video_gn.prepare.synthetic import synthesize

        place, lock = self.out / SYNTHETIC, self.out / f".{SYNTHETIC}.lock"
        with naming_unwritable(lock):
            file = hold(lock, wait_seconds=math.inf)
        with file:
            remove_temporary(place, recursive=True)  # of a killed process
            synthesize(
                place,
                num_train_per_class=study.synthetic["train_per_class"],
                num_val_per_class=study.synthetic["val_per_class"],
                seed=study.synthetic["seed"],
            )
        self.has_videos = True


def _title(cell: Cell, study: Study) -> str:
    # Numbered from 0, as --cell takes them.
    return f"cell {cell.index} of {study.num_cells} ({cell.name})" if cell.folder == CELLS else cell.title


def _outcome(directory: CellDirectory) -> str:
    try:
        top1 = read_object(directory.metrics).get("top1")
        accuracy = "no accuracy" if top1 is None else f"top-1 {100 * top1:.1f} %"
        record = directory.read()
    except DAMAGE as error:
        return f"{directory.metrics} cannot be read: {in_words(error)}"
    return f"{accuracy}, {record.minutes if record else 0:.1f} min"


def _estimate(study: Study, out: Path, left: Sequence[Cell]) -> str:
    """The time left, in words; "" if it is not known yet, or if nothing is left."""
    starts = {} if study.pretrain is None else {cell.start.name: cell.start for cell in left if cell.start is not None}
    open_starts = [cell for cell in starts.values() if not CellDirectory(out, cell).is_done()]
    parts = [_minutes_of(study, out, left), _minutes_of(study.pretrain or study, out, open_starts)]
    if not left or None in parts:
        return ""
    ahead = sum(filter(None, parts))
    end = time.strftime("%H:%M" if ahead < 12 * 60 else "%a %H:%M", time.localtime(time.time() + 60 * ahead))
    duration = f"{ahead:.0f} min" if ahead < 100 else f"{ahead / 60:.1f} h"
    what = f"{len(left)}"
    if open_starts:
        what = f"{count(len(left), 'cell')} and {count(len(open_starts), 'pre-training')}"
    return f"; {what} to do, about {duration} ({end})"


def _minutes_of(study: Study, out: Path, left: Sequence[Cell]) -> float | None:
    """Minutes for cells: their cost is taken as proportional to the frames of a clip. None if none is finished yet."""
    minutes = frames = 0.0
    for cell in study.cells:
        directory = CellDirectory(out, cell)
        record = directory.read()
        if record is not None and directory.is_done():
            minutes, frames = minutes + record.minutes, frames + cell.num_frames
    if not left:
        return 0.0
    return minutes / frames * sum(cell.num_frames for cell in left) if frames else None


def pick_cells(study: Study, text: str) -> list[Cell]:
    """The cells that `--cell` names: "3" is cell 3, "0/4" the first of four parts: cells 0, 4, 8, ...

    Raises:
        ConfigError: for a number outside the study, or a part that does not exist.
    """
    match = re.fullmatch(r"(\d+)(?:/(\d+))?", text)
    if match is None:
        raise ConfigError(f"--cell must be I or I/N, got {text!r}. --list numbers the cells.")
    number = int(match[1])
    if match[2] is None:
        found = [cell for cell in study.cells if cell.index == number]
        if not found:
            those = ", ".join(str(cell.index) for cell in study.cells)
            rule = f"below {study.num_cells}" if len(study.cells) == study.num_cells else f"one of {those} with --quick"
            raise ConfigError(f"--cell must be {rule}, got {number}. --list numbers the cells.")
        return found
    parts = int(match[2])
    if number >= parts:
        raise ConfigError(f"--cell I/N must have I below N, got {text!r}. Parts are numbered from 0.")
    return list(study.cells[number::parts])
