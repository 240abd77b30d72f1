"""Files that one process holds at a time. The kernel lets go of them also after a kill."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import time
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

# So long a lock may outlive the process that took it: the loading workers of a killed run hold it too until they
# notice, which takes some 5 seconds.
LEFT_OVER_SECONDS = 15.0

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class HeldError(Exception):
    """Another process holds the file.

    Args:
        holder: who, in its own words.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def hold(path: Path, *, wait_seconds: float | None = None) -> IO[str]:
    """Hold a file until what is returned is closed, or this process has ended.

    Args:
        path: of the file; made if it is not there. Its content becomes this process's name.
        wait_seconds: how long to wait for another process; None takes `LEFT_OVER_SECONDS`.

    Raises:
        HeldError: where another process still holds it.
        OSError: where the file cannot be written.
    """
    while True:
        file = path.open("a+")
        if not take(file, wait_seconds=wait_seconds):
            content = _content(path)
            if not _is_of_this_jobs_past(content):
                with file:
                    raise HeldError(content)
            # The node has died, and a file server keeps what it held: a new file is held by nobody.
            path.unlink(missing_ok=True)
        elif _is_at(file, path):
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}{_job()}\n")
    file.flush()
    return file


def take(file: IO[Any], *, wait_seconds: float | None = None) -> bool:
    """Take the lock of an open file, which lasts until it is closed.

    Args:
        file: of any content.
        wait_seconds: how long to wait for another process; None takes `LEFT_OVER_SECONDS`.

    Returns:
        False where another process still holds it.
    """
    deadline = time.monotonic() + (LEFT_OVER_SECONDS if wait_seconds is None else wait_seconds)
    while not _is_free(file):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def holder(path: Path) -> str | None:
    """Who holds a file, in its own words; None where nobody does."""
    try:
        file = path.open("r+")
    except FileNotFoundError:
        return None
    with file:
        return None if _is_free(file) else _content(path)


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether a file is still the one of its name: who waited for one that was replaced meanwhile holds nothing."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _job() -> str:
    """SLURM's job, and how often it has been started, as in ", job 17, start 2"."""
    if "SLURM_JOB_ID" not in os.environ:
        return ""
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return f", job {os.environ['SLURM_JOB_ID']}" + (f", start {restarts + 1}" if restarts else "")


def _is_of_this_jobs_past(content: str) -> bool:
    """Whether a lock is of an earlier start of this job: SLURM starts it anew only once all of that has ended."""
    mine, theirs = (re.search(r", job (\d+)(?:, start (\d+))?$", text) for text in (_job(), content))
    return bool(mine and theirs and mine[1] == theirs[1] and int(theirs[2] or 1) < int(mine[2] or 1))


def _is_free(file: IO[Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        log.warning("%s: this file system has no locks; do not start a second run there", file.name)
    return True


def _content(path: Path) -> str:
    try:
        return path.read_text().strip() or "unknown"
    except FileNotFoundError:
        return "unknown"
