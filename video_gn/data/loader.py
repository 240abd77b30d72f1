"""Loader that records the file each worker is reading, so that errors can name it.

A decoder that crashes takes its worker with it, and one that hangs never answers: torch then says "worker exited
unexpectedly" or "timed out". Each worker therefore writes the path before it opens a file, into memory that all
processes share; the parent reads it when something goes wrong.

Workers are forked, and forked again if they do not start. Before 3.11.10, Python takes a lock in the child that a
thread of its parent may have held at the fork, such as one of gloo's that is done with a tensor; the child then waits
forever inside `os.fork`, and its loader with it. Source: CPython's issue 112275.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import sys
import time
import weakref
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext, ForkContext, ForkProcess
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from video_gn.errors import RefusedError, RunError, VideoGNError
from video_gn.processes import check_open_files
from video_gn.run.signals import held_back, ignore_in_worker

log = logging.getLogger(__name__)

_SLOT_BYTES = 4096
# Open files that workers and the batches on their way take: measured, 20 with one worker, 26 with two.
_FILES, _FILES_OF_WORKER = 14, 6
_LOCKS_OF_WORKER = 4  # of its queue, and as many of the queue of all
# What torch says when a worker is gone or late. Source: torch/utils/data/dataloader.py, _signal_handling.
_WORDS = ("DataLoader worker", "DataLoader timed out")
# Then something was raised in a worker, which lives: the message holds its traceback. Source: torch/_utils.py.
_RAISED = "in DataLoader worker process"
# Where workers hand over batches: files of /dev/shm whose names begin so, or their descriptors, through a socket.
# Source: torch/multiprocessing/reductions.py; its MapAllocator.cpp has the errors.
_HANDED = ("</torch_", "items of ancdata", "Communication with the workers")
# (words of torch or the kernel, what the machine has too little of and how to give it more).
_SHORTAGES = (
    ("Too many open files|items of ancdata", "too many files are open. Allow more (ulimit -n 65536)"),
    ("[Cc]an(no|')t allocate memory", "the memory is full. Take a smaller batch"),
    (
        "</torch_|Bus error",
        "shared memory is full, through which loading workers hand over batches{shm}; without workers none is needed. "
        "Enlarge it (docker run --shm-size 8g)",
    ),
)
_FEWER = "take fewer workers (data.loader.num_workers; of infer --num_workers)"

TRAINING_ADVICE = "read it with another --data.backend; --ckpt_path last resumes from the last checkpoint."

_BOARDS: weakref.WeakSet[Any] = weakref.WeakSet()  # of this process's loaders


class ReadingBoard:
    """A line for each worker: the file that it is reading, and since when."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._memory = multiprocessing.RawArray("c", num_workers * _SLOT_BYTES)
        _BOARDS.add(self)

    def write(self, path: str) -> None:
        """Note the file that this worker opens, "" when it is done; outside of a worker nothing is noted."""
        info = get_worker_info()
        if info is None:
            return
        text = f"{time.time():.3f} {path}".encode("utf-8", "surrogateescape")[: _SLOT_BYTES - 1] if path else b""
        start = info.id * _SLOT_BYTES
        self._memory[start : start + len(text) + 1] = text + b"\0"

    def reading(self) -> list[tuple[str, float]]:
        """(path, seconds since it was opened) of each worker that is reading, the longest first."""
        found = []
        for worker in range(self.num_workers):
            text = self._memory[worker * _SLOT_BYTES : (worker + 1) * _SLOT_BYTES].split(b"\0", 1)[0]
            if text:
                since, path = text.decode("utf-8", "surrogateescape").split(" ", 1)
                found.append((path, max(0.0, time.time() - float(since))))
        return sorted(found, key=lambda item: -item[1])


def _shortage(text: str) -> RunError | None:
    """An error that says what the machine has too little of: no video is to blame."""
    what = next((what for words, what in _SHORTAGES if re.search(words, text)), None)
    if what is None:
        return None
    try:
        shm = f" (/dev/shm has {shutil.disk_usage('/dev/shm').total / 1e6:,.0f} MB)"
    except OSError:
        shm = ""
    last = text.strip().splitlines()[-1].removeprefix("RuntimeError: ")
    return RunError(f"{what.format(shm=shm)}, or {_FEWER}. ({last})")


def _check_locks(context: Any, number: int) -> None:
    """Refuse shared memory that cannot even take the locks of the queues: torch would fail half-way."""
    try:
        _ = [context.Lock() for _ in range(number)]
    except OSError as error:
        raise RefusedError(
            f"loading workers cannot start: {error.strerror or error}. Is /dev/shm full or read-only? Enlarge it "
            f"(docker run --shm-size 8g), or {_FEWER}, none with 0."
        ) from error


def explain(error: RuntimeError, *, advice: str = TRAINING_ADVICE) -> RunError | None:
    """An error that says why a worker died or came late, in place of torch's: a shortage, or the files it was reading.

    Args:
        error: error of a loader, or raised anywhere in the main thread when a worker dies.
        advice: what can be done other than leaving the file out, and how to resume.

    Returns:
        None if the error is about something else.
    """
    text = str(error)
    if not any(words in text for words in (*_WORDS, *_HANDED)):
        return None
    shortage = _shortage(text)
    if shortage is not None or _RAISED in text:
        return shortage
    reading = sorted((item for board in _BOARDS for item in board.reading()), key=lambda item: -item[1])
    names = ", ".join(f"{path} (for {seconds:.0f} s)" for path, seconds in reading[:8]) or "no file"
    what = (
        "no batch came within data.loader.timeout_seconds"
        if "timed out" in text
        else f"a loading worker died ({text.splitlines()[0]})"
    )
    if "signal: Killed" in text:  # as the kernel does; a video that needs much memory may be the cause
        what += f". Is the memory full? Then {_FEWER}"
    return RunError(f"{what}; the workers were reading: {names}. Take such a file out of the list, or {advice}")


class WatchedLoader(DataLoader[Any]):
    """DataLoader whose errors name the files that dead or late workers were reading, with the advice of `explain`.

    A `ClipDataset` writes them to its `board`. Workers ignore the signals that ask a run to stop.
    """

    def __init__(self, dataset: Any, *, num_workers: int = 0, advice: str = TRAINING_ADVICE, **settings: Any) -> None:
        if num_workers:
            # Python 3.14's default, forkserver, would leave the workers of a killed process alive: they watch their
            # parent, which is then the server.
            settings |= {"multiprocessing_context": fork_context(), "worker_init_fn": ignore_in_worker}
            if hasattr(dataset, "board"):
                dataset.board = ReadingBoard(num_workers)
        super().__init__(dataset, num_workers=num_workers, **settings)
        self._advice = advice

    def __iter__(self) -> Any:
        if self.num_workers:
            check_open_files(_FILES + _FILES_OF_WORKER * self.num_workers)
            _check_locks(self.multiprocessing_context or multiprocessing, _LOCKS_OF_WORKER * (self.num_workers + 1))
        with held_back():
            iterator = super().__iter__()
        return self._watched(iterator)

    def _watched(self, iterator: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except VideoGNError as error:
                # One of ours from a worker comes with the worker's traceback before its own words.
                name = f"\n{type(error).__module__}.{type(error).__qualname__}: "
                if _RAISED not in str(error) or name not in str(error):
                    raise
                raise type(error)(str(error).rpartition(name)[2].strip()) from error
            except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
                # A dead worker's last batch is fetched from a socket that nobody serves any more.
                text = error if isinstance(error, RuntimeError) else RuntimeError(f"DataLoader worker gone: {error!r}")
                explained = explain(text, advice=self._advice)
                if explained is None:
                    raise
                raise explained from error
            yield batch


# ---- forks that have started ---------------------------------------------------------------------

# A child needs milliseconds, on an overloaded machine a second.
_PATIENCE_SECONDS = 10.0
_TRIES = 5
# The first version without that lock; 3.12 never had it.
_MENDED = (3, 11, 10)


class BegunProcess(ForkProcess):
    """Process that is forked again if it does not begin."""

    _begun = -1

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing's name
        for _ in range(_TRIES):
            ready, process_obj._begun = os.pipe()
            try:
                try:
                    popen = ForkProcess._Popen(process_obj)
                finally:
                    os.close(process_obj._begun)
                if wait([ready], timeout=_PATIENCE_SECONDS):
                    return popen
            finally:
                os.close(ready)
            log.warning("a loading process did not begin in %g s; starting another one", _PATIENCE_SECONDS)
            popen.kill()
            popen.wait()
        raise RunError(
            f"no loading process has begun in {_TRIES} tries of {_PATIENCE_SECONDS:g} s. Is the machine that busy? "
            "Take fewer data.loader.num_workers, or Python 3.12 or newer."
        )

    def run(self) -> None:
        """Report that it has begun, then do the work."""
        os.write(self._begun, b"\0")
        os.close(self._begun)
        super().run()


class _BegunContext(ForkContext):
    Process = BegunProcess


def fork_context() -> BaseContext | None:
    """How to fork on this Python; None on systems without fork."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return None
    return multiprocessing.get_context("fork") if sys.version_info >= _MENDED else _BegunContext()
