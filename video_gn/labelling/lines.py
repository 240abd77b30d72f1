"""A file of results that grows line by line, X.jsonl, and its settings beside it, X.jsonl.meta.json.

The settings lie beside the results so that every line of X.jsonl is a result, for any reader of json lines. A line is
an entry of `video_gn.evaluation.results.video_result`, or {"path", "reason"} of a failure. A kill can cut off only the
last line; earlier lines are never written again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from video_gn.clips import Failure
from video_gn.errors import ConfigError
from video_gn.evaluation.results import write_results
from video_gn.files import write_json
from video_gn.journal import Journal, decode, whole_lines
from video_gn.lists.records import VideoRecord
from video_gn.timelines.subtitles import SUFFIXES as SUBTITLES
from video_gn.timelines.subtitles import write_subtitles

log = logging.getLogger(__name__)

LINES_SUFFIX = ".jsonl"
_VERSION = 1
_ANEW = "Label all anew with --overwrite, or choose another --output."


@dataclass(frozen=True)
class About:
    """What a file of lines was made with."""

    settings: Mapping[str, Any]  # values by the names of their options; all parts of one list have the same
    checkpoint: str = ""  # its path; its hash is among the settings, so that a copy counts as the same
    part: str | None = None  # "2/8"; None for the whole list
    merged: bool = False  # whether it is the result of a merge
    # None while unfinished. Else {"videos": lines of this file, "listed": videos of the whole list, "sha256": hash of
    # the whole list}.
    complete: Mapping[str, Any] | None = None


def about_path(path: Path) -> Path:
    """Path of the settings of a file of lines."""
    return path.with_name(f"{path.name}.meta.json")


def read_about(path: Path) -> About | None:
    """What a file of lines was made with; None without a settings file.

    Raises:
        ConfigError: the settings file is damaged.
    """
    place = about_path(path)
    try:
        content = json.loads(place.read_bytes())
        if content.pop("version") != _VERSION:
            raise ValueError("another version")
        if "shard" in content:  # the former name of a part
            content["part"] = content.pop("shard")
        return About(**content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{place}: must be written by video-gn infer, got something else ({error}). {_ANEW}"
        ) from error


def write_about(path: Path, about: About) -> None:
    """Write the settings of a file of lines, whole or not at all."""
    write_json(about_path(path), {"version": _VERSION, **vars(about)})


def difference(mine: About, theirs: About) -> str | None:
    """The first setting that differs, as in "--num_clips must be 10 as for these lines, got 2"; None if none does."""
    for name in sorted({*mine.settings, *theirs.settings}):
        wanted, got = theirs.settings.get(name), mine.settings.get(name)
        if wanted != got:
            files = (f" ({theirs.checkpoint})", f" ({mine.checkpoint})") if name == "checkpoint" else ("", "")
            return f"--{name} must be {wanted!r}{files[0]} as for these lines, got {got!r}{files[1]}"
    return None


def to_entry(result: Mapping[str, Any] | Failure) -> Mapping[str, Any]:
    """The entry of a result or failure."""
    return {"path": result.path, "reason": result.reason} if isinstance(result, Failure) else result


def read_entry(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """The entry of a whole line.

    Raises:
        ConfigError: for a line that is no result; names the path and the line's number, from 1.
    """
    entry = decode(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        shown = line[:60].decode("utf-8", "replace")
        raise ConfigError(f"{path}:{number}: a line must be a result of video-gn infer, got {shown!r}. {_ANEW}")
    return entry


class LinesFile:
    """The lines of one run; no other process can write the file while it is open.

    `about` is what this run writes with; `overwrite` removes the lines that are there, `replace` those that are damaged
    or were made with other settings.

    Raises:
        ConfigError: the lines that are there were made with other settings, or their settings are missing.
        RunError: another process writes the file, or it cannot be written.
    """

    def __init__(self, path: Path, about: About, *, overwrite: bool = False, replace: bool = False) -> None:
        self.path = path
        self._about = about
        self._num_lines = 0
        self._journal = Journal(path, lock=path.with_name(f".{path.name}.lock"))
        try:
            if overwrite or (replace and not self._fit()):
                path.unlink(missing_ok=True)
                about_path(path).unlink(missing_ok=True)
            self._check_about()
        except BaseException:
            self._journal.close()
            raise

    def _fit(self) -> bool:
        try:
            self._check_about()
            for number, line in enumerate(whole_lines(self.path), 1):
                read_entry(line, self.path, number)
        except ConfigError:
            log.warning("%s: what a stopped run has left is of other videos or settings: starting anew", self.path)
            return False
        return True

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

    def resume(self, videos: Iterator[VideoRecord]) -> Iterator[dict[str, Any]]:
        """Yield the entries that are there, take their videos from `videos`, and be ready to write the others.

        Raises:
            ConfigError: they are not those of the first videos, in their order; the file stays untouched.
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
                f"The list has become shorter. {_ANEW}"
            )
        if video.path != path:
            raise ConfigError(
                f"{self.path}:{number}: the line must be of {video.path!r}, the video at this place, got {path!r}. The "
                f"list has changed. {_ANEW}"
            )

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append a line; errors are those of `video_gn.journal.write_all`."""
        self._journal.add(entry)
        self._num_lines += 1

    def finish(self, *, listed: int, sha256: str) -> None:
        """Note that the run is complete, with the number of videos and the hash of the whole list."""
        self._journal.sync()
        complete = {"videos": self._num_lines, "listed": listed, "sha256": sha256}
        write_about(self.path, About(**{**vars(self._about), "complete": complete}))

    def write_whole(self, output: Path) -> None:
        """Write all entries as the output's name ends; errors as `video_gn.files.whole_path`."""
        write = write_subtitles if output.suffix in SUBTITLES else write_results
        write(output, self.entries(failed=False), self.entries(failed=True))

    def entries(self, *, failed: bool) -> Iterator[Any]:
        """The entries of all lines that have labels, or of those that failed."""
        return (entry for entry in map(decode, whole_lines(self.path)) if ("reason" in entry) == failed)

    def remove(self) -> None:
        """Remove the lines: all is written elsewhere."""
        self._journal.remove()
        about_path(self.path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._journal.close()
