"""A process pool that outlives its workers: a task may crash its process, be killed for memory, or never end.

Such a task is named, and the others continue in a new process.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from video_gn.errors import RefusedError, RunError
from video_gn.files import error_of_system, is_of_machine

# Not fork: the caller may have threads, and a fork would copy their locks in any state. The fork server imports once
# and forks every worker.
START_METHOD = "forkserver"
_START_SECONDS = 300.0  # imports on a busy file system
_START_FILES = 6  # that the start of a worker opens, the server's included
_MAX_FAILED_STARTS = 3
_BEAT_SECONDS = 1.0
# Between the end of a worker's pipe and its exit code.
_END_SECONDS = 5.0

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
Work = Callable[[TaskT, Callable[[], None]], ResultT]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_open_files(number: int) -> None:
    """Check that this process may open so many more files: processes that are short of some hang or die half-way.

    Raises:
        RefusedError: it may not.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(os.devnull).open())
            for _ in range(number):
                stack.callback(os.close, os.dup(file.fileno()))
        except OSError as error:
            raise RefusedError(
                f"worker processes need {number} more open files, got {error.strerror}. Allow more (ulimit -n 65536), "
                "or take fewer workers (data.loader.num_workers; of infer and data --num_workers)."
            ) from error


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a task that crashed its process twice, or hung."""

    reason: str  # one line


def run_tasks(
    tasks: Iterable[TaskT],
    work: Work[TaskT, ResultT],
    *,
    num_workers: int,
    stall_seconds: float,
    tasks_at_once: int = 1,
    preload: str,
) -> Iterator[tuple[TaskT, ResultT | Lost]]:
    """Do tasks in other processes; yields one result for each task, in the order in which they finish.

    Args:
        tasks: Arguments of `work`, taken up in their order as workers become free.
        work: `(task, beat) -> result`, importable by other processes. It may call `beat()` as it makes progress. An
            error that it raises ends its process; a `RunError`, or a full or read-only disk, ends all.
        num_workers: Processes, at least 1.
        stall_seconds: A worker that sends neither a beat nor a result for so long is killed.
        tasks_at_once: Tasks that a worker gets in one message. More are faster where each takes a moment only.
        preload: Name of the module to import before workers are forked, the one that `work` lies in.

    Yields:
        (task, its result), or (task, `Lost`) for a task that hung or crashed twice: a first crash may have another
        cause, such as a process beside it that took the memory.

    Raises:
        RunError: if processes cannot be started, or one that a task has raised.
    """
    pool = _Pool(iter(tasks), work, num_workers, stall_seconds, tasks_at_once, preload)
    try:
        while pool.feed():
            yield from pool.collect()
    finally:
        for worker in pool.workers:
            worker.end()


class _Worker(Generic[TaskT]):
    """A process, the pipe to it, and the tasks that it has not yet done, its present one first."""

    def __init__(self, context: Any, work: Work[TaskT, Any], stall_seconds: float) -> None:
        self.pipe, other = context.Pipe()
        check_open_files(_START_FILES)  # a start that fails half-way prints a traceback
        self.process = context.Process(target=_serve, args=(other, work, stall_seconds), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process is the end of the pipe
        self.is_ready = False
        self.deadline = time.monotonic() + _START_SECONDS
        self.queue: deque[TaskT] = deque()
        self.is_second_try = False

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass
class _Pool(Generic[TaskT, ResultT]):
    """See `run_tasks`."""

    tasks: Iterator[TaskT]
    work: Work[TaskT, ResultT]
    num_workers: int
    stall_seconds: float
    tasks_at_once: int
    preload: str
    workers: list[_Worker[TaskT]] = field(default_factory=list)
    again: deque[TaskT] = field(default_factory=deque)  # of workers that died, not yet begun
    suspects: deque[TaskT] = field(default_factory=deque)  # what a worker may have died of: each goes alone
    num_failed_starts: int = 0

    def __post_init__(self) -> None:
        self.context: Any = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            self.context.set_forkserver_preload([self.preload])

    def feed(self) -> bool:
        """Give tasks to idle workers, and start workers for the remaining ones; False when all are done."""
        for worker in list(self.workers):
            if worker.is_ready and not worker.queue:
                self._give(worker)
        while len(self.workers) < self.num_workers and self._has_more():
            self.workers.append(_Worker(self.context, self.work, self.stall_seconds))
        return any(worker.queue for worker in self.workers) or self._has_more()

    def _has_more(self) -> bool:
        if not self.again and not self.suspects:
            self.again.extend(islice(self.tasks, 1))
        return bool(self.again or self.suspects)

    def _give(self, worker: _Worker[TaskT]) -> None:
        worker.is_second_try = bool(self.suspects)
        if self.suspects:
            worker.queue.append(self.suspects.popleft())
        else:
            again = [self.again.popleft() for _ in range(min(self.tasks_at_once, len(self.again)))]
            worker.queue.extend([*again, *islice(self.tasks, self.tasks_at_once - len(again))])
        if not worker.queue:
            return
        worker.deadline = time.monotonic() + self.stall_seconds
        try:
            worker.pipe.send(list(worker.queue))
        except OSError:  # it died while it had nothing to do: no task is to blame
            (self.suspects if worker.is_second_try else self.again).extend(worker.queue)
            self.workers.remove(worker)
            worker.end()

    def collect(self) -> Iterator[tuple[TaskT, ResultT | Lost]]:
        """Wait for a message or a deadline, and yield the results that have come."""
        busy = [worker for worker in self.workers if worker.queue or not worker.is_ready]
        patience = min(worker.deadline for worker in busy) - time.monotonic()
        ready = set(wait([worker.pipe for worker in busy], timeout=max(0.0, patience)))
        for worker in busy:
            if worker.pipe in ready:
                yield from self._receive(worker)
            # Asked again after the wait: a worker that has sent something meanwhile is not late.
            elif time.monotonic() > worker.deadline and not worker.pipe.poll():
                if not worker.is_ready:
                    raise RunError(f"a worker process must start within {_START_SECONDS:g} s. Set fewer workers.")
                reason = f"no progress for {self.stall_seconds:g} seconds, so its worker process was ended"
                yield from self._bury(worker, reason, may_try_again=False)

    def _receive(self, worker: _Worker[TaskT]) -> Iterator[tuple[TaskT, ResultT | Lost]]:
        """Read messages: None for a sign of life, (result,) for a result, an error that is no task's fault."""
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                worker.deadline = time.monotonic() + self.stall_seconds
                if not worker.is_ready:
                    worker.is_ready = True
                    self.num_failed_starts = 0
                if isinstance(message, RunError):
                    raise message
                if message is not None:
                    yield worker.queue.popleft(), message[0]
        except (EOFError, OSError):
            worker.process.join(_END_SECONDS)
            how = _describe(worker.process.exitcode)
            if not worker.is_ready:
                self.num_failed_starts += 1
                if self.num_failed_starts >= _MAX_FAILED_STARTS:
                    raise RunError(
                        f"num_workers: worker processes must start, got {self.num_failed_starts} that died at once, "
                        f"the last one {how}. Set fewer workers if there is too little memory, and guard the main "
                        'part of a script with `if __name__ == "__main__"`.'
                    ) from None
            yield from self._bury(worker, f"its worker process {how}", may_try_again=not worker.is_second_try)

    def _bury(self, worker: _Worker[TaskT], reason: str, *, may_try_again: bool) -> Iterator[tuple[TaskT, Lost]]:
        """End a worker: its first task is to blame, others do the rest."""
        self.workers.remove(worker)
        worker.end()
        if not worker.queue:
            return
        blamed, *others = worker.queue
        self.again.extend(others)
        if may_try_again:
            self.suspects.append(blamed)
        else:
            yield blamed, Lost(reason)


def _describe(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        try:
            name = signal.Signals(-exitcode).name
        except ValueError:
            name = f"signal {-exitcode}"
        return f"crashed ({name}{': out of memory?' if name == 'SIGKILL' else ''})"
    return f"ended with exit status {exitcode} (its error is in the log)"


def _serve(pipe: Any, work: Work[Any, Any], stall_seconds: float) -> None:
    """Body of a worker: lists of tasks in, one result after the other out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    last_beat = 0.0

    def send(message: Any) -> None:
        # Should the parent be gone, and a hang keep the thread above from running, this ends the process.
        signal.alarm(math.ceil(stall_seconds) + 60)
        try:
            pipe.send(message)
        except OSError:  # the parent is gone
            os._exit(1)

    def beat() -> None:
        nonlocal last_beat
        now = time.monotonic()
        if now - last_beat >= _BEAT_SECONDS:
            last_beat = now
            send(None)

    send(None)
    while True:
        signal.alarm(0)
        try:
            tasks = pipe.recv()
        except (EOFError, OSError):
            return
        signal.alarm(math.ceil(stall_seconds) + 60)
        for task in tasks:
            try:
                result = work(task, beat)
            except RunError as error:  # such as a full disk
                send(error)
                return
            except OSError as error:
                if not is_of_machine(error):
                    raise
                send(error_of_system(error))
                return
            send((result,))


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, which would write into what its successor makes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
