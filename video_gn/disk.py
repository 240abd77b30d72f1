"""A full disk: which file it was, what room there is, and what to do."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from video_gn.errors import DiskFullError

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
