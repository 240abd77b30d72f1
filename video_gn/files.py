"""Files written whole or not at all, errors of a full or read-only disk that say what to do, and locks.

A file is written beside its name as `.NAME.PID.tmp`, synced and renamed: after a kill or an error the old file is there
or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from video_gn.errors import DiskFullError, RefusedError, RunError, UnwritableError, VideoGNError

log = logging.getLogger(__name__)

# ---- whole files --------------------------------------------------------------------------------

_TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.tmp")


@contextlib.contextmanager
def whole_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file by its name; it replaces the target when the block ends, and is removed after an error.

    The target's directory is made. The name stands for an empty file, so that a directory that cannot be written to is
    noticed before the work. What a killed process has left of the same target is removed.

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
                _remove_abandoned(target)
                held = part.open("wb")
            with held:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield part
                with naming_unwritable(target):
                    with part.open("rb") as file:
                        os.fsync(file.fileno())
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


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary files of a target that no process writes any more, as far as they can be seen."""
    with contextlib.suppress(OSError):
        for part in _temporary_files(target.parent.absolute()):
            found = _TEMPORARY.fullmatch(part.name)
            if found is not None and found[1] == target.name:
                with contextlib.suppress(OSError, OverflowError):
                    if _is_abandoned(part, int(found[2])):
                        part.unlink()


@functools.cache
def _temporary_files(directory: Path) -> list[Path]:
    """Those that lay there when this process first wrote there: a directory of 100,000 files is listed once."""
    return [path for path in directory.iterdir() if _TEMPORARY.fullmatch(path.name)]


def _is_abandoned(part: Path, pid: int) -> bool:
    """Whether no process of this machine has the number, and none of another one holds the file's lock."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        with part.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def remove_temporary(directory: Path, *, name: str = "*", recursive: bool = False) -> None:
    """Remove the temporary files that killed processes left of targets whose names match the glob pattern `name`.

    Call it while holding the lock that all writers there hold. `recursive` also cleans the directories below.
    """
    pattern = f".{name}.*.tmp"
    for stale in directory.rglob(pattern) if recursive else directory.glob(pattern):
        if _TEMPORARY.fullmatch(stale.name):
            stale.unlink(missing_ok=True)


# ---- errors of the disk -------------------------------------------------------------------------

_OF_TRAININGS = " A training resumes with --ckpt_path last, and takes less room with fewer checkpoint.keep_steps."
# No room, no room for this user, and a file above the shell's limit (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors that pass by themselves, as of a file server: another start may cure them.
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOMEM)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that names the file and says what to do; other errors pass.

    Raises:
        DiskFullError: no room.
        VideoGNError: one of ours that something else failed on, on its way out.
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


def _full_disk(error: BaseException, path: Path) -> VideoGNError | None:
    """The error of a full disk that is behind an error, or the one of ours that is; None if there is none.

    torch raises a RuntimeError of its own when a write fails, and so may what is closed on the way out.
    """
    chain: list[BaseException] = []
    behind: BaseException | None = error
    while behind is not None and behind not in chain:
        chain.append(behind)
        behind = behind.__cause__ or behind.__context__
    # One that says what to do is behind what was raised on its way out.
    named = next((e for e in chain if isinstance(e, VideoGNError)), None)
    number = next((n for n in map(_error_number, chain) if n in _FULL), None)
    if named is not None or number is None:
        return named
    directory = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    usage = shutil.disk_usage(directory)
    return DiskFullError(
        f"{path} could not be written: {os.strerror(number)}. {usage.free / 1e6:.1f} of {usage.total / 1e6:.1f} MB are "
        f"free there. What was saved before is whole. Make room, or raise the quota or limit, and run the command "
        f"again.{_OF_TRAININGS if path.suffix == '.ckpt' else ''}"
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
        raise _of_system(f"{path} could not be written", error, path, f" ({path.parent})") from error


def is_of_machine(error: OSError) -> bool:
    """Whether any task would fail so: the disk is full or read-only, or too many files are open."""
    return error.errno in (*_FULL, *_TOO_MANY, errno.EROFS)


def error_of_system(error: OSError) -> VideoGNError:
    """What to raise or print in place of an error of the system: one that names its file and says what to do."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    full = None if name is None else _full_disk(error, Path(name))
    return full or _of_system(name or "the system refused", error, Path(name or ""))


def reason_of(error: OSError, path: Path) -> str:
    """What the system says of an error, or which of a path's directories is none."""
    blocking = next((p for p in path.parents if os.path.lexists(p) and not p.is_dir()), None)
    return f"{blocking} is no directory" if blocking else error.strerror or str(error)


def _of_system(what: str, error: OSError, path: Path, where: str = "") -> RunError:
    reason = reason_of(error, path)
    if reason not in (error.strerror, str(error)):
        return UnwritableError(f"{what}: {reason}. Choose another place.")
    told = f"{what}: {reason}{where}."
    if error.errno in _PASSING:
        return RunError(f"{told} Run the command again.")
    if error.errno in _FULL:
        return DiskFullError(f"{told} Make room, and run the command again.")
    if error.errno in _TOO_MANY:
        return RefusedError(f"{told} Allow more open files (ulimit -n 65536), or take fewer workers.")
    if error.errno == errno.ENOENT:
        return UnwritableError(f"{told} If it was removed meanwhile, run the command again.")
    return UnwritableError(f"{told} Choose a directory that this user may write to, or change its permissions.")


def check_place(target: Path) -> None:
    """Write and remove a small file where a result is to be written: the work would be lost if it could not be.

    Raises:
        DiskFullError, UnwritableError, RunError: as `whole_path`.
    """
    with naming_unwritable(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name[:100]}.", suffix=".tmp") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())


# ---- locks ------------------------------------------------------------------------------------

# How long a lock may outlive its process: the DataLoader workers of a killed run hold it too until they notice the
# kill, which takes about 5 seconds.
LEFT_OVER_SECONDS = 15.0
_SILENT_SECONDS = 1.0  # a longer wait is told

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
        content = _content(path)
        if not _take(file, 0.0 if _is_of_this_jobs_past(content) else seconds):
            content = _content(path)
            if not _is_of_this_jobs_past(content):
                with file:
                    raise HeldError(content)
            # The node died, and the file server keeps its locks: nobody holds a new file.
            path.unlink(missing_ok=True)
        elif _is_at(file, path):
            break
        file.close()
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}{_job()}\n")
        file.flush()
    except OSError as error:
        error.filename = str(path)
        raise
    return file


def _not_through_a_link(path: str, flags: int) -> int:
    """Open a file whose content is replaced in place, unless it is a link: what that leads to may be anybody's."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _take(file: IO[Any], seconds: float) -> bool:
    """Lock an open file until it is closed; False if another process still holds it after so many seconds."""
    begin, is_told = time.monotonic(), False
    while not _is_free(file):
        waited = time.monotonic() - begin
        if waited >= seconds:
            return False
        if waited >= _SILENT_SECONDS and not is_told:
            is_told = True
            limit = "" if math.isinf(seconds) else f" {seconds:g} s"
            log.info("%s is in use by another run (%s): waiting%s", file.name, _content(Path(file.name)), limit)
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
