"""Runs cells: each a `fit` that goes on from its last checkpoint, and a `test` of the last checkpoint."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from video_gn.errors import ConfigError, RunError
from video_gn.study.cells import CellDirectory, CellRecord
from video_gn.study.plan import Cell, Study
from video_gn.study.settings import as_word

log = logging.getLogger(__name__)

# (words after `video-gn`, file to append its output to) -> exit status.
Runner = Callable[[Sequence[str], Path], int]
# Of a test whose results stand, though some videos could not be read.
_SOME_UNREADABLE = 3
# What is left of a cell's output that was a terminal's: colours, and lines written over.
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
# For a child to write its last lines after Ctrl-C or SIGTERM.
_GRACE_SECONDS = 20.0


def run_child(words: Sequence[str], log_path: Path) -> int:
    """Run `video-gn WORDS...` in a process of its own.

    Args:
        words: command and options.
        log_path: its output is appended here.

    Returns:
        Its exit status; negative for a signal.
    """
    with log_path.open("ab") as file, _signals_stop():
        child = subprocess.Popen(
            [sys.executable, "-m", "video_gn", *words], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            return child.wait()
        except BaseException:
            # Whoever stops the study stops the cell; its last checkpoint stays.
            child.terminate()
            try:
                child.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    """SLURM's SIGTERM or SIGUSR1 unwinds this process, so that its child ends with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def words_of(study: Study, directory: CellDirectory) -> list[str]:
    """A cell's options, the same for fit and test, as they would be typed."""
    settings = directory.cell.settings
    return [
        "-c",
        str(study.base_path),
        f"--run_dir={directory.path}",
        *(as_word(key, value) for key, value in settings.items()),
        *study.words,
        # The test too is of the last checkpoint: `best` would be chosen by the very videos that are tested.
        "--ckpt_path=last",
    ]


def run_cell(study: Study, directory: CellDirectory, *, runner: Runner = run_child) -> str | None:
    """Train and test a cell, or what is left of it to do. The caller holds it.

    Args:
        study: the plan.
        directory: of the cell.
        runner: runs a command.

    Returns:
        None, or what failed.
    """
    record = directory.read() or CellRecord({})
    # What may change between attempts is kept as the last one had it.
    record.settings, record.extra = study.resolved(directory.cell), sorted(study.extra)
    directory.begin(record)
    words = words_of(study, directory)
    failed = None
    if not record.fit_done:
        failed = _step(["fit", *words], directory, runner)
        record.fit_done = failed is None
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
    """The last words of a command, past `start` bytes: its error, where it is one of ours."""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - 20_000))
        lines = [_CONTROLS.sub("", line).strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    told = [line for line in lines if line]
    errors = [line for line in told if "error:" in line.lower()]
    return (errors or told or ["it said nothing"])[-1]


# ---- a list of cells -------------------------------------------------------------------------


def run_cells(study: Study, out: Path, cells: Sequence[Cell], *, runner: Runner = run_child) -> list[str]:
    """Run cells one after another; finished ones are not run again, a failing one does not stop the others.

    Args:
        study: the plan.
        out: the study's directory.
        cells: of the plan.
        runner: runs a command.

    Returns:
        What failed, a line for each cell.

    Raises:
        ConfigError: before anything is run, where a cell was begun with other settings.
        RunError: for a single cell that another process runs.
    """
    directories = [CellDirectory(out, cell) for cell in cells]
    for directory in directories:
        directory.check_unchanged(study)
    # A first word on what is there, then a line for each cell.
    done = [directory.cell.name for directory in directories if directory.state(study) == "done"]
    log.info("%s: %d of %d cells, %d of them finished; %s", study.path, len(cells), len(study.cells), len(done), out)
    clock, failures = _Clock(study, out), []
    for number, directory in enumerate(directories):
        left = [d.cell for d in directories[number:] if d.cell.name not in done]
        if directory.cell.name in done:
            log.info("%s: finished before, %s", _title(directory.cell, study), _outcome(directory))
            continue
        try:
            with directory.held():
                failed = _run_held(study, directory, clock, left, runner)
        except RunError as error:
            if len(cells) == 1:
                raise
            log.warning("%s", error)
            continue
        if failed is not None:
            failures.append(f"{directory.cell.name}: {failed} (see {directory.log})")
            log.error("%s failed: %s (see %s)", _title(directory.cell, study), failed, directory.log)
    return failures


def _run_held(
    study: Study, directory: CellDirectory, clock: _Clock, left: Sequence[Cell], runner: Runner
) -> str | None:
    title = _title(directory.cell, study)
    if directory.is_done():
        log.info("%s: finished by another process, %s", title, _outcome(directory))
        return None
    begun = directory.read()
    if begun is not None:
        # What another process began in the meantime may differ too.
        directory.check_unchanged(study)
    log.info("%s: %s%s", title, "going on" if begun else "training", clock.told(left))
    failed = run_cell(study, directory, runner=runner)
    if failed is None:
        log.info("%s: %s%s", title, _outcome(directory), clock.told(left[1:]))
    return failed


def _title(cell: Cell, study: Study) -> str:
    # Numbered from 0, as --cell takes them.
    return f"cell {cell.index} of {len(study.cells)} ({cell.name})"


def _outcome(directory: CellDirectory) -> str:
    try:
        top1 = json.loads(directory.metrics.read_text(encoding="utf-8")).get("top1")
        record = directory.read()
    except (OSError, ValueError) as error:
        return f"{directory.metrics} cannot be read: {error}"
    accuracy = "no accuracy" if top1 is None else f"top-1 {100 * top1:.1f} %"
    return f"{accuracy}, {record.minutes if record else 0:.1f} min"


class _Clock:
    """Time left, from the minutes for each frame of a clip that finished cells took: frames make the cost."""

    def __init__(self, study: Study, out: Path) -> None:
        self.study = study
        self.out = out

    def told(self, left: Sequence[Cell]) -> str:
        minutes = frames = 0.0
        for cell in self.study.cells:
            directory = CellDirectory(self.out, cell)
            record = directory.read()
            if record is not None and directory.is_done():
                minutes, frames = minutes + record.minutes, frames + cell.num_frames
        if not frames or not left:
            return ""
        ahead = minutes / frames * sum(cell.num_frames for cell in left)
        end = time.strftime("%H:%M" if ahead < 12 * 60 else "%a %H:%M", time.localtime(time.time() + 60 * ahead))
        return f"; {len(left)} to do, about {_duration(ahead)} ({end})"


def _duration(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def pick_cells(study: Study, text: str) -> list[Cell]:
    """The cells that `--cell` names.

    Args:
        study: the plan.
        text: "3" for cell 3; "0/4" for the first of four parts: cells 0, 4, 8, ...

    Raises:
        ConfigError: for a number outside the study, or a part that is none.
    """
    match = re.fullmatch(r"(\d+)(?:/(\d+))?", text)
    num_cells = len(study.cells)
    if match is None:
        raise ConfigError(f"--cell must be I or I/N, got {text!r}. --list numbers the cells.")
    number = int(match[1])
    if match[2] is None:
        if number >= num_cells:
            raise ConfigError(f"--cell must be below {num_cells}, got {number}. --list numbers the cells.")
        return [study.cells[number]]
    parts = int(match[2])
    if number >= parts:
        raise ConfigError(f"--cell I/N must have I below N, got {text!r}. Parts are numbered from 0.")
    return list(study.cells[number::parts])
