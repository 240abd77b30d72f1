"""What one file of a prepared data set is made of, and how a worker makes it."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_gn.decoding.frame_folders import folder_state
from video_gn.decoding.tar_members import is_member, split_path
from video_gn.errors import DecodeError
from video_gn.files import whole_path
from video_gn.prepare._prepare_journal import announce, note
from video_gn.prepare.encode import EncodeSettings, encode


@dataclass(frozen=True)
class Task:
    """A record and what is made of it.

    Args:
        source: a video's path.
        segment: start and end in seconds, None for the video's own.
        name: of what is made, below the directory.
        key: the same for the same source, segment and settings.
    """

    source: str
    segment: tuple[float | None, float | None]
    name: str
    key: str


@dataclass
class Chunk:
    """Tasks whose files go into one shard.

    Args:
        shard: its name; None for a single task whose file stays loose.
        places: of the tasks.
        key: the same for the same tasks and labels.
    """

    shard: str | None
    places: list[int]
    key: str = ""


def make(task: Task, beat: Callable[[], None], *, out: Path, settings: EncodeSettings) -> dict[str, Any]:
    """Make one file, in a worker.

    Args:
        task: what to make.
        beat: called while it gets on.
        out: the directory.
        settings: how to write.

    Returns:
        Its note in the journal; with "failed", the reason, where the video cannot be read.

    Raises:
        OSError: where nothing can be written.
    """
    path = out / task.name
    try:
        with whole_path(path) as written:
            done = encode(task.source, written, settings, segment=task.segment, on_frame=beat)
            entry = {
                "name": task.name,
                "key": task.key,
                "bytes": done.num_bytes,
                "num_frames": done.num_frames,
                "size": [done.width, done.height],
            }
            announce(out, entry)
    except DecodeError as error:
        entry = {"name": task.name, "key": task.key, "failed": error.reason}
        note(out, entry)
    return entry


def state_of(path: str) -> tuple[int, int]:
    """Size and time of a file, of a frame folder's pictures, or of a member's shard; -1 where it is not there."""
    try:
        status = Path(split_path(path)[0] if is_member(path) else path).stat()
        if stat.S_ISDIR(status.st_mode):
            return folder_state(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def digest(content: Sequence[Any]) -> str:
    """The same for the same content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
