"""A pool of processes that outlives its workers: a decoder may crash, be killed for memory, or never answer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

from video_gn.errors import RunError

CRASHED = "the decoder crashed"
# Not fork: the caller may have threads. The server imports once, and forks every worker from there.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_CHUNK = 32
# A crash may have another cause, such as a process beside it that took the memory: once more, then.
_TRIES = 2
_START_SECONDS = 300.0
_MAX_FAILED_STARTS = 3
_END_SECONDS = 5.0
# How often an idle worker looks whether its parent is still there.
_WATCH_SECONDS = 2.0

Task = tuple[Any, ...]
Work = Callable[..., Any]


def run_tasks(
    tasks: Iterable[Task], work: Work, *, num_workers: int, timeout_seconds: float, preload: str
) -> Iterator[tuple[Task, Any]]:
    """Do tasks in processes; results come as they are ready, one for each task.

    Args:
        tasks: arguments of `work`; taken up as workers become free.
        work: a function that processes can import.
        num_workers: at least 1.
        timeout_seconds: for each task; a worker that takes longer is killed.
        preload: the module that `work` lies in.

    Yields:
        (task, what `work` gave), or (task, `Lost`) where the worker died or gave no answer.

    Raises:
        RunError: where processes cannot be started.
    """
    pool = _Pool(iter(tasks), work, timeout_seconds, preload)
    try:
        pool.workers = [pool.start() for _ in range(num_workers)]
        while pool.feed():
            yield from pool.collect()
    finally:
        for worker in pool.workers:
            worker.end()


@dataclass(frozen=True)
class Lost:
    """Stands for a result that never came."""

    reason: str


@dataclass(eq=False)
class _Worker:
    process: Any
    pipe: Connection
    deadline: float
    is_ready: bool = False
    queue: deque[Task] = field(default_factory=deque)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool:
    """See `run_tasks`."""

    def __init__(self, tasks: Iterator[Task], work: Work, timeout_seconds: float, preload: str) -> None:
        self.tasks = tasks
        self.work = work
        self.timeout_seconds = timeout_seconds
        self.context: Any = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            self.context.set_forkserver_preload([preload])
        self.workers: list[_Worker] = []
        self.again: deque[Task] = deque()  # of workers that died: not yet done
        self.suspects: deque[Task] = deque()  # what a worker died of, perhaps: each goes alone
        self.num_tries: Counter[Task] = Counter()
        self.num_failed_starts = 0

    def start(self) -> _Worker:
        here, there = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(there, self.work, self.timeout_seconds), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here, time.monotonic() + _START_SECONDS)

    def feed(self) -> bool:
        """Give work to whoever has none; False when all is done."""
        for place, worker in enumerate(self.workers):
            if worker.is_ready and not worker.queue:
                chunk = self._next_chunk()
                if not chunk:
                    continue
                worker.queue.extend(chunk)
                worker.deadline = time.monotonic() + self.timeout_seconds
                try:
                    worker.pipe.send(chunk)
                except OSError:  # it died while it had nothing to do: none of the chunk is to blame
                    self.again.extend(worker.queue)
                    worker.end()
                    self.workers[place] = self.start()
        if any(worker.queue for worker in self.workers):
            return True
        return self._has_more()

    def _has_more(self) -> bool:
        """Whether there are tasks left; looks one ahead while all workers are still starting."""
        if not self.again and not self.suspects:
            self.again.extend(islice(self.tasks, 1))
        return bool(self.again or self.suspects)

    def _next_chunk(self) -> list[Task]:
        if self.suspects:
            return [self.suspects.popleft()]
        chunk = [self.again.popleft() for _ in range(min(_CHUNK, len(self.again)))]
        return chunk + list(islice(self.tasks, _CHUNK - len(chunk)))

    def collect(self) -> Iterator[tuple[Task, Any]]:
        """Results that are there, after waiting for the first."""
        busy = [worker for worker in self.workers if worker.queue or not worker.is_ready]
        patience = min(worker.deadline for worker in busy) - time.monotonic()
        ready = set(wait([worker.pipe for worker in busy], timeout=max(0.0, patience)))
        for worker in busy:
            if worker.pipe in ready:
                yield from self._receive(worker)
            elif time.monotonic() > worker.deadline:
                yield from self._give_up(worker)

    def _receive(self, worker: _Worker) -> Iterator[tuple[Task, Any]]:
        try:
            while worker.pipe.poll():
                result = worker.pipe.recv()
                if not worker.is_ready:
                    worker.is_ready = True
                    self.num_failed_starts = 0
                    return
                worker.deadline = time.monotonic() + self.timeout_seconds
                yield worker.queue.popleft(), result
        except (EOFError, OSError):
            yield from self._bury(worker)

    def _bury(self, worker: _Worker) -> Iterator[tuple[Task, Any]]:
        """A worker is dead: its first task is to blame, the others are done by the next one."""
        worker.process.join(_END_SECONDS)  # its pipe closes a moment before its exit code is known
        if not worker.is_ready:
            self.num_failed_starts += 1
            if self.num_failed_starts >= _MAX_FAILED_STARTS:
                raise RunError(
                    f"processes that read videos cannot be started: {self.num_failed_starts} died at once, the last "
                    f"with exit code {worker.process.exitcode}. Is there enough memory? Set fewer workers."
                )
        if worker.queue:
            task = worker.queue.popleft()
            self.num_tries[task] += 1
            if self.num_tries[task] < _TRIES:
                self.suspects.append(task)
            else:
                yield task, Lost(CRASHED)
        self._replace(worker)

    def _give_up(self, worker: _Worker) -> Iterator[tuple[Task, Any]]:
        """A worker gives no answer."""
        if not worker.is_ready:
            raise RunError(f"a process that reads videos did not start in {_START_SECONDS:g} s. Set fewer workers.")
        yield worker.queue.popleft(), Lost(f"no answer in {self.timeout_seconds:g} s")
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        self.again.extend(worker.queue)
        worker.queue.clear()
        worker.end()
        self.workers[self.workers.index(worker)] = self.start()


def _serve(pipe: Connection, work: Work, timeout_seconds: float) -> None:
    """What a worker does: lists of tasks in, one result after the other out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    parent = os.getppid()
    try:
        pipe.send(None)
        while True:
            # Pipes of a forked worker may be held open by its siblings: ask for the parent as well.
            while not pipe.poll(_WATCH_SECONDS):
                if os.getppid() != parent:
                    return
            for task in pipe.recv():
                # Should the parent be gone by then, a worker that hangs ends itself.
                if hasattr(signal, "alarm"):
                    signal.alarm(int(timeout_seconds) + 60)
                pipe.send(work(*task))
            if hasattr(signal, "alarm"):
                signal.alarm(0)
    except (EOFError, OSError):
        return  # the parent is gone
