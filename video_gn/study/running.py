"""Runs cells: each is a `fit`, which resumes from its last checkpoint, and a `test` of the last checkpoint."""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from video_gn.damage import DAMAGE, in_words, read_object
from video_gn.errors import ConfigError, RunError
from video_gn.run.signals import StopFlag
from video_gn.study.cells import CellDirectory, CellRecord
from video_gn.study.plan import Cell, Study
from video_gn.study.settings import as_word

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

    The status is negative for a signal. A signal to this process, as from SLURM, ends the child too.

    Raises:
        StoppedError: after a signal to this process, once the child has ended. Its last checkpoint stays.
    """
    flag = StopFlag()
    with log_path.open("ab") as file, flag.installed():
        child = subprocess.Popen(
            [sys.executable, "-m", "video_gn", *words], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        return flag.wait_for(child, grace_seconds=_GRACE_SECONDS)


def words_of(study: Study, directory: CellDirectory) -> list[str]:
    """A cell's options on the command line, the same for fit and test."""
    settings = directory.cell.settings
    return [
        "-c",
        str(study.base_path),
        f"--run_dir={directory.path}",
        *(as_word(key, value) for key, value in settings.items()),
        *study.words,
        # The test uses the last checkpoint too: `best` would be chosen by the very videos that are tested.
        "--ckpt_path=last",
    ]


def run_cell(study: Study, directory: CellDirectory, *, runner: Runner = run_child) -> str | None:
    """Train and test a cell, or what is left of that, and return what failed; the caller holds its lock."""
    record = directory.read() or CellRecord({})
    # Settings that may change between attempts are recorded as the last one had them.
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
        ConfigError: before anything is run, if a cell was started with other settings.
        RunError: for a single cell that another process runs.
        StoppedError: after a signal.
    """
    directories = [CellDirectory(out, cell) for cell in cells]
    for directory in directories:
        directory.check_unchanged(study)
    done = [directory.cell.name for directory in directories if directory.state(study) == "done"]
    log.info("%s: %d of %d cells, %d of them finished; %s", study.path, len(cells), len(study.cells), len(done), out)
    failures = []
    for number, directory in enumerate(directories):
        left = [d.cell for d in directories[number:] if d.cell.name not in done]
        if directory.cell.name in done:
            log.info("%s: finished before, %s", _title(directory.cell, study), _outcome(directory))
            continue
        try:
            with directory.held():
                failed = _run_held(study, directory, out, left, runner)
        except RunError as error:
            if len(cells) == 1:
                raise
            log.warning("%s", error)
            continue
        if failed is not None:
            failures.append(f"{directory.cell.name}: {failed} (see {directory.log})")
            log.error("%s failed: %s (see %s)", _title(directory.cell, study), failed, directory.log)
    return failures


def _run_held(study: Study, directory: CellDirectory, out: Path, left: Sequence[Cell], runner: Runner) -> str | None:
    title = _title(directory.cell, study)
    if directory.is_done():
        log.info("%s: finished by another process, %s", title, _outcome(directory))
        return None
    directory.check_unchanged(study)  # another process may have started it in the meantime
    started = directory.read()
    log.info("%s: %s%s", title, "resuming" if started else "training", _estimate(study, out, left))
    failed = run_cell(study, directory, runner=runner)
    if failed is None:
        log.info("%s: %s%s", title, _outcome(directory), _estimate(study, out, left[1:]))
    return failed


def _title(cell: Cell, study: Study) -> str:
    # Numbered from 0, as --cell takes them.
    return f"cell {cell.index} of {len(study.cells)} ({cell.name})"


def _outcome(directory: CellDirectory) -> str:
    try:
        top1 = read_object(directory.metrics).get("top1")
        accuracy = "no accuracy" if top1 is None else f"top-1 {100 * top1:.1f} %"
        record = directory.read()
    except DAMAGE as error:
        return f"{directory.metrics} cannot be read: {in_words(error)}"
    return f"{accuracy}, {record.minutes if record else 0:.1f} min"


def _estimate(study: Study, out: Path, left: Sequence[Cell]) -> str:
    """The time left, in words: a cell's cost is taken as proportional to the frames of its clip."""
    minutes = frames = 0.0
    for cell in study.cells:
        directory = CellDirectory(out, cell)
        record = directory.read()
        if record is not None and directory.is_done():
            minutes, frames = minutes + record.minutes, frames + cell.num_frames
    if not frames or not left:
        return ""
    ahead = minutes / frames * sum(cell.num_frames for cell in left)
    end = time.strftime("%H:%M" if ahead < 12 * 60 else "%a %H:%M", time.localtime(time.time() + 60 * ahead))
    duration = f"{ahead:.0f} min" if ahead < 100 else f"{ahead / 60:.1f} h"
    return f"; {len(left)} to do, about {duration} ({end})"


def pick_cells(study: Study, text: str) -> list[Cell]:
    """The cells that `--cell` names: "3" is cell 3, "0/4" the first of four parts: cells 0, 4, 8, ...

    Raises:
        ConfigError: for a number outside the study, or a part that does not exist.
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
