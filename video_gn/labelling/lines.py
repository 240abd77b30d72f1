"""A file of results that grows line by line, X.jsonl, and what they were made with, X.jsonl.meta.json beside it.

Settings lie beside the results, not in them, so that every line of X.jsonl is a result and any reader of json lines
takes the file as it is. A line is an entry of `video_gn.evaluation.results.video_result`, or {"path", "reason"} of a
failure. A kill can cut off the last line alone; what is before it is never written again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from video_gn.clips import Failure
from video_gn.errors import ConfigError
from video_gn.files import write_json
from video_gn.journal import Journal, decode
from video_gn.lists.records import VideoRecord

_VERSION = 1
_ANEW = "Label all anew with --overwrite, or choose another --output."


@dataclass(frozen=True)
class About:
    """What a file of lines was made with.

    Args:
        settings: by the names of their options; lines of one file, and of the parts of one, have the same.
        checkpoint: its path; its hash is among the settings, so that a copy of it is the same.
        part: "2/8"; None for the whole list.
        merged: whether it is a merge's result.
        complete: None where a run is still to go on. Else {"videos": lines of this file, "listed": videos of the
            whole list, "sha256": of the whole list}.
    """

    settings: Mapping[str, Any]
    checkpoint: str = ""
    part: str | None = None
    merged: bool = False
    complete: Mapping[str, Any] | None = None


def about_path(path: Path) -> Path:
    """Where the settings of a file of lines are."""
    return path.with_name(f"{path.name}.meta.json")


def read_about(path: Path) -> About | None:
    """What a file of lines was made with; None where nothing tells.

    Raises:
        ConfigError: where what tells it is damaged.
    """
    place = about_path(path)
    try:
        content = json.loads(place.read_bytes())
        if content.pop("version") != _VERSION:
            raise ValueError("another version")
        if "shard" in content:  # as a part was called
            content["part"] = content.pop("shard")
        return About(**content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{place}: must be written by video-gn infer, got something else ({error}). {_ANEW}"
        ) from error


def write_about(path: Path, about: About) -> None:
    """Write what a file of lines was made with, whole or not at all."""
    write_json(about_path(path), {"version": _VERSION, **vars(about)})


def difference(mine: About, theirs: About) -> str | None:
    """The first setting that differs, in words: "--num_clips must be 10 as in ..., got 2" without the place."""
    for name in sorted({*mine.settings, *theirs.settings}):
        wanted, got = theirs.settings.get(name), mine.settings.get(name)
        if wanted != got:
            files = (f" ({theirs.checkpoint})", f" ({mine.checkpoint})") if name == "checkpoint" else ("", "")
            return f"--{name} must be {wanted!r}{files[0]} as for these lines, got {got!r}{files[1]}"
    return None


def to_entry(result: Mapping[str, Any] | Failure) -> Mapping[str, Any]:
    """What stands in a line."""
    return {"path": result.path, "reason": result.reason} if isinstance(result, Failure) else result


def read_entry(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """The entry of a line.

    Args:
        line: whole, with its end.
        path: of the file, for the message.
        number: of the line, from 1; likewise.

    Raises:
        ConfigError: for another line.
    """
    entry = decode(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        shown = line[:60].decode("utf-8", "replace")
        raise ConfigError(f"{path}:{number}: a line must be a result of video-gn infer, got {shown!r}. {_ANEW}")
    return entry


class LinesFile:
    """The lines of one run, held from other processes while it is open.

    Args:
        path: of the file.
        about: what this run writes with.
        overwrite: leave nothing of what is there.

    Raises:
        ConfigError: where what is there was made with other settings, or nothing tells with which.
        RunError: where another process writes it, or it cannot be written.
    """

    def __init__(self, path: Path, about: About, *, overwrite: bool = False) -> None:
        self.path = path
        self._about = about
        self._num_lines = 0
        self._journal = Journal(path, lock=path.with_name(f".{path.name}.lock"))
        try:
            if overwrite:
                path.unlink(missing_ok=True)
                about_path(path).unlink(missing_ok=True)
            self._check_about()
        except BaseException:
            self._journal.close()
            raise

    def _check_about(self) -> None:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        there = read_about(self.path)
        if there is None:
            raise ConfigError(
                f"{self.path}: --output must be new or written by video-gn infer, got a file without "
                f"{about_path(self.path).name}. {_ANEW}"
            )
        words = difference(self._about, there)
        if words is not None:
            raise ConfigError(f"{self.path}: {words}. {_ANEW}")

    def go_on(self, videos: Iterator[VideoRecord]) -> Iterator[dict[str, Any]]:
        """Go past the videos whose lines are there, and be ready for the others.

        Args:
            videos: from the beginning on; afterwards at the first one without a line.

        Yields:
            The entries that are there.

        Raises:
            ConfigError: where they are not those of the first videos, in their order; the file is left as it is.
        """
        for number, line in enumerate(self._journal.resume(), 1):
            entry = read_entry(line, self.path, number)
            self._check_place(number, entry["path"], next(videos, None))
            yield entry
            self._num_lines = number
        write_about(self.path, self._about)

    def _check_place(self, number: int, path: str, video: VideoRecord | None) -> None:
        if video is None:
            raise ConfigError(
                f"{self.path}:{number}: must be at most {number - 1} lines, one for each video, got one of {path!r}. "
                f"The list is shorter than it was. {_ANEW}"
            )
        if video.path != path:
            raise ConfigError(
                f"{self.path}:{number}: the line must be of {video.path!r}, the video at this place, got {path!r}. The "
                f"list is another than it was. {_ANEW}"
            )

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append a line; errors are those of `video_gn.journal.write_all`."""
        self._journal.add(entry)
        self._num_lines += 1

    def finish(self, *, listed: int, sha256: str) -> None:
        """Note that nothing is left to do.

        Args:
            listed: videos of the whole list.
            sha256: of the whole list.
        """
        self._journal.sync()
        complete = {"videos": self._num_lines, "listed": listed, "sha256": sha256}
        write_about(self.path, About(**{**vars(self._about), "complete": complete}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._journal.close()
