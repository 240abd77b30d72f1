"""Files that one process holds at a time. The kernel lets go of them also after a kill."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO


class HeldError(Exception):
    """Another process holds the file.

    Args:
        holder: who, in its own words.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def hold(path: Path, *, wait_seconds: float) -> IO[str]:
    """Hold a file until what is returned is closed, or this process has ended.

    Args:
        path: of the file; made if it is not there. Its content becomes this process's name.
        wait_seconds: how long to wait for another process.

    Raises:
        HeldError: where another process still holds it.
        OSError: where the file cannot be written.
    """
    file = path.open("a+")
    deadline = time.monotonic() + wait_seconds
    while not _is_free(file):
        if time.monotonic() >= deadline:
            with file:
                raise HeldError(_content(file))
        time.sleep(0.02)
    file.truncate(0)
    job = f", job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    file.write(f"process {os.getpid()} on {os.uname().nodename}{job}\n")
    file.flush()
    return file


def holder(path: Path) -> str | None:
    """Who holds a file, in its own words; None where nobody does."""
    try:
        file = path.open("r+")
    except FileNotFoundError:
        return None
    with file:
        return None if _is_free(file) else _content(file)


def _is_free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"
