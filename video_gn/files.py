"""Files written whole or not at all, errors of a full or read-only disk that say what to do, and locks.

A file is written beside its name as `.NAME.PID.tmp`, synced and renamed: after a kill or an error the old file is there
or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from video_gn.errors import DiskFullError, RunError, UnwritableError, VideoGNError

log = logging.getLogger(__name__)

# ---- whole files --------------------------------------------------------------------------------

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


@contextlib.contextmanager
def whole_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file by its name; it replaces the target when the block ends, and is removed after an error.

    The target's directory is made. The name stands for an empty file, so that a directory that cannot be written to is
    noticed before the work.

    Raises:
        DiskFullError: no room; the old file is whole.
        UnwritableError: the directory is read-only or forbidden, or no directory.
    """
    target = Path(target)
    part = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with naming_full_disk(target):  # around all: it says what is free without the part
        try:
            with naming_unwritable(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                part.open("wb").close()
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            with naming_unwritable(target):
                part.replace(target)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


@contextlib.contextmanager
def whole_file(target: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """As `whole_path`, with the file open: for text as UTF-8, or for bytes with the mode "wb".

    In a text, bytes of a file name that are no text stay what they are.
    """
    text = {} if "b" in mode else {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    with whole_path(target) as part, part.open(mode, **text) as file:  # type: ignore[call-overload]
        yield file


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all; errors are those of `whole_path`."""
    with whole_file(target) as file:
        file.write(text)


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file, whole or not at all; errors are those of `whole_path`."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def remove_temporary(directory: Path, *, name: str = "*", recursive: bool = False) -> None:
    """Remove the temporary files that killed processes left of targets whose names match the glob pattern `name`.

    Call it while holding the lock that all writers there hold. `recursive` also cleans the directories below.
    """
    pattern = f".{name}.*.tmp"
    for stale in directory.rglob(pattern) if recursive else directory.glob(pattern):
        if _TEMPORARY.fullmatch(stale.name):
            stale.unlink(missing_ok=True)


# ---- errors of the disk -------------------------------------------------------------------------

# No room, no room for this user, and a file above the shell's limit (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors that pass by themselves, as of a file server: another start may cure them.
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOMEM)


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that names the file and says what to do; other errors pass.

    Raises:
        DiskFullError: no room.
    """
    try:
        yield
    except VideoGNError:
        raise  # says itself what to do
    except Exception as error:
        full = _full_disk(error, path)
        if full is None:
            raise
        raise full from error


def _full_disk(error: BaseException, path: Path) -> DiskFullError | None:
    """The error of a full disk that is behind an error; None if there is none.

    torch raises a RuntimeError of its own when a write fails, and so may what is closed on the way out.
    """
    chain: list[BaseException] = []
    behind: BaseException | None = error
    while behind is not None and behind not in chain:
        chain.append(behind)
        behind = behind.__cause__ or behind.__context__
    # One that names its file is behind what was raised on its way out.
    named = next((e for e in chain if isinstance(e, DiskFullError)), None)
    number = next((n for n in map(_error_number, chain) if n in _FULL), None)
    if named is not None or number is None:
        return named
    directory = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    usage = shutil.disk_usage(directory)
    return DiskFullError(
        f"{path} could not be written: {os.strerror(number)}. {usage.free / 1e6:.1f} of {usage.total / 1e6:.1f} MB are "
        f"free there. What was saved before is whole. Make room, or raise the quota or limit, and run the command "
        "again. A training resumes with --ckpt_path last, and takes less room with fewer checkpoint.keep_steps."
    )


def _error_number(error: BaseException) -> int | None:
    """The system's error number, also of ffmpeg's errors and of safetensors', which has it in the text alone."""
    if isinstance(number := getattr(error, "errno", None), int):
        return number
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextlib.contextmanager
def naming_unwritable(path: Path) -> Iterator[None]:
    """Turn any error of the system into one that names the file and says what to do.

    Raises:
        DiskFullError: no room.
        UnwritableError: the directory is read-only or forbidden, or no directory.
        RunError: an error of the disk or file server that may pass.
    """
    try:
        with naming_full_disk(path):
            yield
    except OSError as error:
        what = f"{path} could not be written: {error.strerror or error} ({path.parent})."
        if error.errno in _PASSING:
            raise RunError(f"{what} Run the command again.") from error
        raise UnwritableError(
            f"{what} Choose a directory that this user may write to, or change its permissions."
        ) from error


# ---- locks ------------------------------------------------------------------------------------

# How long a lock may outlive its process: the DataLoader workers of a killed run hold it too until they notice the
# kill, which takes about 5 seconds.
LEFT_OVER_SECONDS = 15.0

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class HeldError(Exception):
    """Another process holds the file; `holder` names it."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def hold(path: Path, *, wait_seconds: float | None = None) -> IO[str]:
    """Hold a lock file, which names this process, until the returned file is closed, or this process ends.

    Another process is waited for, `LEFT_OVER_SECONDS` by default.

    Raises:
        HeldError: another process still holds it.
        OSError: the file cannot be written.
    """
    seconds = LEFT_OVER_SECONDS if wait_seconds is None else wait_seconds
    while True:
        file = open(path, "a+", opener=_not_through_a_link)  # noqa: SIM115
        if not _take(file, seconds):
            content = _content(path)
            if not _is_of_this_jobs_past(content):
                with file:
                    raise HeldError(content)
            # The node died, and the file server keeps its locks: nobody holds a new file.
            path.unlink(missing_ok=True)
        elif _is_at(file, path):
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}{_job()}\n")
    file.flush()
    return file


def _not_through_a_link(path: str, flags: int) -> int:
    """Open a file whose content is replaced in place, unless it is a link: what that leads to may be anybody's."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _take(file: IO[Any], seconds: float) -> bool:
    """Lock an open file until it is closed; False if another process still holds it after so many seconds."""
    deadline = time.monotonic() + seconds
    while not _is_free(file):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def holder(path: Path) -> str | None:
    """Name of the process that holds a lock file; None if nobody does."""
    try:
        file = path.open("r+")
    except FileNotFoundError:
        return None
    with file:
        return None if _is_free(file) else _content(path)


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether an open file is still the one at its path: a process that waited for a removed file holds nothing."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _job() -> str:
    """The SLURM job and the number of its start, such as ", job 17, start 2"."""
    if "SLURM_JOB_ID" not in os.environ:
        return ""
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return f", job {os.environ['SLURM_JOB_ID']}" + (f", start {restarts + 1}" if restarts else "")


def _is_of_this_jobs_past(content: str) -> bool:
    """Whether an earlier start of this job took the lock: SLURM restarts a job only after all its processes ended."""
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
        return path.read_text(errors="replace")[:200].strip() or "unknown"
    except FileNotFoundError:
        return "unknown"
