"""What commands print: results on standard output, log lines and progress bars on standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from video_gn.shown import console, count, shown_message, shown_text

log = logging.getLogger("video_gn")


class _LevelFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = shown_message(record.getMessage())
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


class _CurrentStderr(logging.StreamHandler[Any]):
    """Writes to `sys.stderr` as it is at the time: a progress bar replaces it, to print lines above itself."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Nothing: the base's `__init__` sets what it was at the start."""


def set_up_logging(*, quiet: bool = False) -> None:
    """Print the package's log lines on standard error, warnings and errors with their level, Python's warnings too.

    Quiet leaves warnings and errors only: no lines beside them, and no bars.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {shown_message(message)}\n"
    if not log.handlers:
        handler = _CurrentStderr()
        handler.setFormatter(_LevelFormatter())
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.INFO)


def _has_bars() -> bool:
    return sys.stderr.isatty() and log.isEnabledFor(logging.INFO)


def print_text(text: str) -> None:
    """Print a text of several lines on standard output; what would steer the terminal is escaped."""
    sys.stdout.write(f"{shown_text(text)}\n")


def quieten_lightning() -> None:
    """Hide what Lightning and torch warn of that is as it should be in our runs."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("profilers", "callbacks"):  # they log only what a setting asked for
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    for message in (
        # sys.argv holds the words too if we are the console script.
        "LightningCLI's args parameter is intended.*",
        # torch about Lightning 2.6.
        ".*isinstance.treespec, LeafSpec.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        # Every rank logs the same value, computed from what all have seen.
        ".*It is recommended to use `self.log.*sync_dist=True.*",
        # How a job is launched is checked in `run.slurm`.
        ".*`srun` command is available on your system but is not used.*",
        # Steps are counted over epochs.
        ".*is smaller than the logging interval.*",
        # Our sampler resumes inside an epoch; Lightning cannot know.
        ".*ended before the epoch ended and your dataloader is not resumable.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    threading.excepthook = _of_thread


def _of_thread(args: threading.ExceptHookArgs) -> None:
    """A line in place of the traceback of TensorBoard's writer: its error is raised at the next event too."""
    if type(args.thread).__name__ == "_AsyncWriterThread":
        log.warning("TensorBoard's events could not be written: %s", args.exc_value)
    else:
        threading.__excepthook__(args)


def with_progress(items: Any, total: int | None, done: int = 0) -> Any:
    """Yield the items; on a terminal with a bar of videos done, of all or of "?", and videos per second."""
    if not _has_bars():
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("videos"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("videos", total=total, completed=done, rate="")
        for item in items:
            yield item
            speed = bar.tasks[0].speed
            bar.update(task, advance=1, rate="" if speed is None else f"{speed:.1f} a second")


@contextlib.contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, all): it moves a bar on a terminal, and elsewhere logs a line every tenth."""
    if _has_bars():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    tenths = 0

    def log_tenths(done: int, total: int) -> None:
        nonlocal tenths
        if total and (10 * done) // total > tenths:
            tenths = (10 * done) // total
            log.info("%d of %d %s", done, total, what)

    yield log_tenths


# ---- the table that a test or a validation ends with ------------------------------------------------

_ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class accuracy"}


def print_figures(figures: Mapping[str, str]) -> None:
    """Print names and figures as a table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, figure in figures.items():
        table.add_row(name, escape(figure))
    console().print(table)


def test_figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Names and figures of a test's metrics.json."""
    num_videos, num_failed = metrics["num_videos"], metrics["num_failed"]
    num_read = num_videos - num_failed
    failed = f"; {num_failed} could not be read and {'is' if num_failed == 1 else 'are'} not counted"
    clips, crops = (count(metrics[f"num_{what}s"], what) for what in ("clip", "crop"))
    return {
        "checkpoint": metrics["checkpoint"] or "none",
        **_accuracies(metrics, num_read),
        "videos": f"{num_read} of {num_videos} ({_percent(metrics['coverage'], num_videos)})"
        + failed * (num_failed > 0),
        "views": f"{clips} x {crops} of each video",
    }


def validation_figures(metrics: Mapping[str, Any], *, checkpoint: str | None, num_videos: int) -> dict[str, str]:
    """Names and figures of what Lightning has logged in a validation, val/loss and so on."""
    values = {name.removeprefix("val/"): float(value) for name, value in metrics.items()}
    return {
        "checkpoint": checkpoint or "none",
        "loss": f"{values['loss']:.3f}",
        **_accuracies(values, num_videos),
        "videos": f"{num_videos}, one clip of each",
    }


def _accuracies(metrics: Mapping[str, Any], num_videos: int) -> dict[str, str]:
    found = {name: metrics[key] for key, name in _ACCURACIES.items() if metrics.get(key) is not None}
    return {name: _percent(value, num_videos) for name, value in found.items()}


def _percent(fraction: float, num_videos: int) -> str:
    """A second digit from 1000 videos on, where it means something."""
    return f"{100 * fraction:.{1 if num_videos < 1000 else 2}f} %"
