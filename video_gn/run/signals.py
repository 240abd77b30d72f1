"""Signals that end a run: noted in the main process, and ignored by the processes that load for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from video_gn.errors import StoppedError

# What clusters send before they take a node away, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Whether a signal asked this process to stop. A handler does nothing more: a save or a collective inside of it
    would come at a moment of its own on each process.

    While nothing is under way there is nothing to wait for: outside of `waiting` the signal ends the run where it is,
    and so does a second Ctrl-C anywhere but within `held`.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0 for none
        self.since_seconds = 0.0  # when it came, by time.monotonic
        self._what = ""  # that is waited for the end of
        self._is_held = False
        self._grace_seconds: float | None = None
        self._timer: threading.Timer | None = None
        self._is_late = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_again = bool(self.number) and number == signal.SIGINT
        if not self.number:
            self.since_seconds = time.monotonic()
        self.number = number
        if self._is_held:
            return
        if not self._what or is_again or self._is_late:
            self.check()
        if self._timer is None and self._grace_seconds is not None:
            self._timer = threading.Timer(self._grace_seconds, self._come_late)
            self._timer.daemon = True
            self._timer.start()
        again = " (once more: at once)" if number == signal.SIGINT else ""
        # Python's own stderr cannot be written to from inside of a write to it.
        os.write(2, f"{signal.Signals(number).name}: stopping at the end of this {self._what}{again}\n".encode())

    def _come_late(self) -> None:
        self._is_late = True
        os.kill(os.getpid(), self.number)  # handlers are the main thread's

    def check(self) -> None:
        """End the run where a signal has come.

        Raises:
            StoppedError: it names the signal.
        """
        if self.number:
            raise StoppedError(f"{signal.Signals(self.number).name}: stopped.", status=128 + self.number)

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
    def waiting(self, what: str, *, grace_seconds: float | None = None) -> Iterator[None]:
        """Somebody looks at `number` at the end of each of something.

        Args:
            what: that has an end to wait for, in a word.
            grace_seconds: how long it may still take after a signal; None for as long as it wants.
        """
        self._what, self._grace_seconds = what, grace_seconds
        try:
            yield
        finally:
            self._what, self._is_late = "", False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What is done whole, whatever comes; a signal that has come before or meanwhile ends the run after it.

        Raises:
            StoppedError: at its end.
        """
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        self.check()


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
