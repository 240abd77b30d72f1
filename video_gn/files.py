"""Files and locks: locks that the kernel releases after a kill, and errors of a full disk that say what to do."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from video_gn.errors import DiskFullError

log = logging.getLogger(__name__)

# No room, no room for this user, and a file above the shell's limit (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def full_disk(error: BaseException, path: Path) -> DiskFullError | None:
    """The error of a full disk that is behind an error, with what to do about it; None for any other.

    torch raises a RuntimeError of its own when a write fails, and so may what is closed on the way out.

    Args:
        error: that was raised.
        path: what was written, or the directory that it lies in.
    """
    chain: list[BaseException] = []
    behind: BaseException | None = error
    while behind is not None and behind not in chain:
        chain.append(behind)
        behind = behind.__cause__ or behind.__context__
    # One that was told is behind what was raised while it was on its way out.
    told = next((e for e in chain if isinstance(e, DiskFullError)), None)
    found = next((e for e in chain if isinstance(e, OSError) and e.errno in _FULL), None)
    return told if told is not None or found is None else DiskFullError(_told(found, path))


@contextlib.contextmanager
def naming_full_disk(path: Path, *, part: Path | None = None) -> Iterator[None]:
    """Turn the error of a full disk into one that says what to do; others go on as they are.

    Args:
        path: what is written.
        part: the file beside it that is written first; it is removed, since it takes the room that is missing.

    Raises:
        DiskFullError: where there is no room.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if part is not None:
            part.unlink(missing_ok=True)
        told = full_disk(error, path)
        if told is None:
            raise
        raise told from error


def _told(error: OSError, path: Path) -> str:
    directory = next(p for p in (path, *path.parents) if p.is_dir())
    usage = shutil.disk_usage(directory)
    return (
        f"{path} could not be written: {error.strerror}. {usage.free / 1e6:.1f} of {usage.total / 1e6:.1f} MB are free "
        f"there. What was saved before is whole: make room, or raise the quota or limit, and go on with --ckpt_path "
        "last. Fewer kept checkpoints (checkpoint.keep_steps) take less."
    )


# ---- locks ------------------------------------------------------------------------------------

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
