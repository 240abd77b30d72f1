"""Signals that end a run: noted in the main process, and ignored by the processes that load for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from video_gn.errors import StoppedError

# What clusters send before they take a node away, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Whether a signal asked this process to stop. A handler does nothing more: a save or a collective inside of it
    would come at a moment of its own on each process.

    While nothing is trained there is nothing to wait for: outside of `waiting` the signal ends the run where it is.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0 for none
        self._is_waited_for = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt  # pressed twice: at once
        self.number = number
        name = signal.Signals(number).name
        if not self._is_waited_for:
            raise StoppedError(f"{name}: stopped.", status=128 + number)
        again = " (once more: at once)" if number == signal.SIGINT else ""
        # Python's own stderr cannot be written to from inside of a write to it.
        os.write(2, f"{name}: stopping at the end of this step{again}\n".encode())

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over; from a thread that is not the main one, nothing is taken over."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.number = 0
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def leave(self) -> None:
        """The run ends: what comes now must not disturb it. `installed` undoes that."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Somebody looks at `number` at each step."""
        self._is_waited_for = True
        try:
            yield
        finally:
            self._is_waited_for = False


# ---- loading processes ---------------------------------------------------------------------------


def ignore_in_worker(worker_id: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: stopping is the main process's business.

    A cluster may signal every process of a job; a worker that dies of it would take the step under way with it. Only
    the main process's own SIGTERM, with which torch ends a worker, counts.

    Args:
        worker_id: unused.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the decoders' threads inherit it
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Signals wait while workers are started, and in these for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
