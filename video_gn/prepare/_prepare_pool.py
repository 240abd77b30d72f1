"""Worker processes of which one may crash or hang on a file without taking the others along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Generic, TypeVar

from video_gn.errors import RunError

_BEAT_SECONDS = 1.0
_START_SECONDS = 300.0  # imports on a busy file system

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Lost:
    """A task whose worker did not come back.

    Args:
        reason: one line.
    """

    reason: str


class _Worker(Generic[TaskT]):
    """A process, the pipe to it, and what it is busy with."""

    def __init__(self, context: Any, work: Callable[..., Any]) -> None:
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, work), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process is the end of the pipe
        self.task: TaskT | None = None
        self.is_ready = False
        self.deadline = time.monotonic() + _START_SECONDS

    def give(self, task: TaskT, stall_seconds: float) -> None:
        self.task = task
        self.deadline = time.monotonic() + stall_seconds
        self.pipe.send(task)

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def run_tasks(
    tasks: Sequence[TaskT],
    work: Callable[[TaskT, Callable[[], None]], ResultT],
    *,
    num_workers: int,
    stall_seconds: float,
    start_method: str = "spawn",
) -> Iterator[tuple[TaskT, ResultT | Lost]]:
    """Do tasks in other processes.

    Args:
        tasks: what to do; given out in this order.
        work: (task, beat) -> result, in a worker; it calls `beat()` while it gets on. What it raises ends its
            process.
        num_workers: processes.
        stall_seconds: a worker that has not called `beat` for so long is ended.
        start_method: of `multiprocessing`.

    Yields:
        (task, its result), in the order in which they are done.

    Raises:
        RunError: where a worker cannot start.
    """
    context = multiprocessing.get_context(start_method)
    waiting = list(reversed(tasks))
    workers: list[_Worker[TaskT]] = []
    try:
        while waiting or any(worker.task is not None for worker in workers):
            for worker in workers:
                if worker.is_ready and worker.task is None and waiting:
                    worker.give(waiting.pop(), stall_seconds)
            num_starting = sum(not worker.is_ready for worker in workers)
            while len(workers) < num_workers and num_starting < len(waiting):
                workers.append(_Worker(context, work))
                num_starting += 1
            for worker, message in _messages(workers, stall_seconds):
                if isinstance(message, Lost):
                    if not worker.is_ready:
                        raise RunError(
                            f"num_workers: a worker process must start, got: {message.reason}. Guard the main part "
                            'of a script with `if __name__ == "__main__"`.'
                        )
                    workers.remove(worker)
                    worker.stop()
                    if worker.task is not None:
                        yield worker.task, message
                elif message is not None:
                    task, worker.task = worker.task, None
                    assert task is not None
                    yield task, message[0]
    finally:
        for worker in workers:
            worker.stop()


def _messages(workers: list[_Worker[TaskT]], stall_seconds: float) -> list[tuple[_Worker[TaskT], Any]]:
    """Wait for workers: a tuple of a result, None for a sign of life, `Lost` for one that ended or hangs."""
    busy = {worker.pipe: worker for worker in workers if worker.task is not None or not worker.is_ready}
    timeout = max(0.0, min(worker.deadline for worker in busy.values()) - time.monotonic())
    readable = set(connection.wait(list(busy), timeout=timeout))
    found: list[tuple[_Worker[TaskT], Any]] = []
    for pipe, worker in busy.items():
        if pipe not in readable:
            # Looked at after the wait: who has sent something meanwhile is not late.
            if time.monotonic() > worker.deadline and not pipe.poll():
                found.append((worker, Lost(f"it made no progress for {stall_seconds:g} seconds, and was ended")))
            continue
        try:
            message = pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            found.append((worker, Lost(_describe(worker.process.exitcode))))
            continue
        worker.is_ready = True
        worker.deadline = time.monotonic() + stall_seconds
        found.append((worker, message))
    return found


def _describe(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        try:
            name = signal.Signals(-exitcode).name
        except ValueError:
            name = f"signal {-exitcode}"
        killed = ": out of memory?" if name == "SIGKILL" else ""
        return f"the worker process crashed on it ({name}{killed})"
    return f"the worker process ended on it (exit status {exitcode}; its error is in the log)"


def _serve(pipe: Any, work: Callable[[Any, Callable[[], None]], Any]) -> None:
    """Body of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    last = 0.0

    def beat() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BEAT_SECONDS:
            last = now
            pipe.send(None)

    pipe.send(None)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        pipe.send((work(task, beat),))


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, which would write into what its successor does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
