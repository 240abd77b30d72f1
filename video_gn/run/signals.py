"""Signals that stop a run: the main process notes them, and its loading workers ignore them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from types import FrameType

from video_gn.errors import StoppedError

# What clusters send before they take a node away, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Whether a signal asked this process to stop. The handler only notes it: a save or a collective call inside a
    handler would come at another moment on each rank.

    Outside `waiting` there is no unit of work to finish, so the signal ends the run at once; and so does a second
    Ctrl-C anywhere but within `held`.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0 for none
        self.since_seconds = 0.0  # when it came, by time.monotonic
        self._what = ""  # unit of work to finish first
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
            self._timer = threading.Timer(self._grace_seconds, self._run_late)
            self._timer.daemon = True
            self._timer.start()
        again = " (once more: at once)" if number == signal.SIGINT else ""
        # Python's own stderr cannot be written to from within a write to it.
        os.write(2, f"{signal.Signals(number).name}: stopping at the end of this {self._what}{again}\n".encode())

    def _run_late(self) -> None:
        self._is_late = True
        os.kill(os.getpid(), self.number)  # handlers run in the main thread

    def check(self) -> None:
        """End the run by a StoppedError, which names the signal, if one has come."""
        if self.number:
            raise StoppedError(f"{signal.Signals(self.number).name}: stopped.", status=128 + self.number)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals; does nothing in a thread other than the main one."""
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
        """Ignore all further signals: the run is ending, and must not be disturbed. `installed` undoes that."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def waiting(self, what: str, *, grace_seconds: float | None = None) -> Iterator[None]:
        """Within it somebody looks at `number` at the end of each unit of work, named `what`, such as "step".

        After a signal the unit may still take `grace_seconds`; None sets no limit.
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
        """Block that a signal cannot interrupt; one received before or during it raises StoppedError at its end."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        self.check()

    def wait_for(self, child: subprocess.Popen[bytes], *, grace_seconds: float) -> int:
        """Wait for a child process; if a signal or an error ends the wait, the child ends too.

        The child gets SIGTERM, at which a run of this package saves and leaves, and SIGKILL if it is still there
        after `grace_seconds`. SIGUSR1 is not passed on: it would make the child requeue the job that it lies in.

        Returns:
            Its exit status; negative for a signal.

        Raises:
            StoppedError: After a signal, once the child is gone.
        """
        try:
            return child.wait()
        except BaseException as error:
            if isinstance(error, StoppedError):
                self.leave()
            child.terminate()
            try:
                child.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


# ---- loading workers -----------------------------------------------------------------------------


def ignore_in_worker(worker_id: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: signals stop the main process, not its workers.

    A cluster may signal every process of a job; a worker that dies would take the step under way with it. Only the
    main process's own SIGTERM, with which torch ends a worker, counts.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the decoders' threads inherit it
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Block the signals while workers start: they wait for this process, and stay blocked in the workers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
