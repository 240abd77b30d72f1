"""Streams the videos to label: those named on the command line, then the lines of a list of any length."""

# os.path, not pathlib: a Path object per line takes as long as all the rest.
# ruff: noqa: PTH118

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import IO

from video_gn.damage import open_text
from video_gn.errors import ConfigError, ManifestError
from video_gn.lists.file_names import is_video
from video_gn.lists.lines import PATH_COLUMNS, SEPARATORS, YOUTUBE_COLUMN, fits
from video_gn.lists.read import find_videos
from video_gn.lists.records import VideoRecord
from video_gn.parts import Part

STDIN = "-"
# No path is longer (PATH_MAX is 4096 bytes): a longer line is no path.
_MAX_LINE_BYTES = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Inputs:
    """Records in their order, in one pass; of a list, one line is in memory at a time.

    Paths that do not exist come first, as records with an error: they fail, and the others are labelled.
    Then come the paths' videos, each once, and then the list's, each as often as it is listed.

    Args:
        paths: Videos, folders, globs and lists, see `find_videos`.
        list_name: File with a path on each line; "-" is standard input; None for none.
        part: Part of the videos to take; None for all.

    Raises:
        ConfigError: neither is given.
        ManifestError: the list cannot be read, or is empty.
    """

    def __init__(self, paths: Sequence[str], list_name: str | None = None, *, part: Part | None = None) -> None:
        if not paths and list_name is None:
            raise ConfigError("PATH must name at least one video, or --list a file with a path a line, got neither.")
        self.part = part
        self.num_seen = 0
        named = find_named(paths)
        num_listed: int | None = 0
        listed: Iterator[VideoRecord] = iter(())
        if list_name is not None:
            # Check the whole file first: an error in its last line is raised now, not after a day.
            num_listed = sum(1 for _ in read_list(list_name)) if _is_file(list_name) else None
            listed = read_list(list_name)
            first = next(listed, None)
            if first is None:
                raise ManifestError(f"{list_name}: --list must have at least one path, got none. Is the file complete?")
            listed = chain([first], listed)
        self._stream: Iterable[VideoRecord] = chain(named, listed)
        total = None if num_listed is None else len(named) + num_listed
        self.total = total if total is None or part is None else part.size(total)

    def hold(self) -> None:
        """Take all records into memory: their number and hash are known before the work, and each pass is the same."""
        self._stream = list(self._stream)
        self.total = sum(1 for _ in self)

    def __iter__(self) -> Iterator[VideoRecord]:
        self._hash = hashlib.sha256()
        for place, record in enumerate(self._stream):
            self.num_seen = place + 1
            segment = f"{record.start_seconds} {record.end_seconds}".encode()
            self._hash.update(os.fsencode(record.path) + b"\0" + segment + b"\0")
            if self.part is None or self.part.has(place):
                yield record

    @property
    def sha256(self) -> str:
        """Hash of all videos so far, also of other parts: at their ends, all parts of one list have the same."""
        return self._hash.hexdigest()


def find_named(paths: Sequence[str]) -> list[VideoRecord]:
    """The videos that paths of a command line name, each once; first, with an error, paths that do not exist."""
    missing: list[VideoRecord] = []
    found: list[VideoRecord] = []
    for path in paths:
        try:
            found += find_videos([path]).records
        except ManifestError as error:
            missing.append(VideoRecord(path, None, error=str(error).removeprefix(f"{path}: ")))
    return missing + list(dict.fromkeys(found))


def read_list(name: str) -> Iterator[VideoRecord]:
    """Records of a list with a path on each line, one at a time.

    Each line is taken whole, spaces and quotes included, without a look at the file: it is a video file, a folder of
    frames or a video in a tar file. Blank lines are left out. Relative paths start from the list's own directory, or
    from the working directory if the list is no file ("-", which is standard input, or a pipe).

    Raises:
        ManifestError: the list cannot be read, or has more columns than paths.
    """
    if name == STDIN:
        yield from _read_lines(sys.stdin.buffer, "standard input", "")
        return
    try:
        with open_text(name) as file:
            base = str(Path(name).parent) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else "."
            yield from _read_lines(file, name, "" if base == "." else base)
    except OSError as error:
        raise ManifestError(f"{name}: --list must be a file, got {error.strerror}. Is the path right?") from error


def _read_lines(file: IO[bytes], name: str, base: str) -> Iterator[VideoRecord]:
    is_first = True
    for number in count(1):
        data = file.readline(_MAX_LINE_BYTES)
        if not data:
            return
        if number == 1:
            data = data.removeprefix(_BYTE_ORDER_MARK)
        line = _decode(data, f"{name}:{number}").removesuffix("\n").removesuffix("\r")
        if not line or line.isspace():
            continue
        path = os.path.join(base, line)
        if is_first:
            _check_first(line, path, f"{name}:{number}")
            is_first = False
        yield VideoRecord(path, None, source=name)


def _decode(data: bytes, where: str) -> str:
    if len(data) == _MAX_LINE_BYTES or b"\0" in data:
        what = "a zero byte" if b"\0" in data else f"{len(data)} bytes without a line end"
        raise ManifestError(f"{where}: a line must be a path, got {what}. Give a list of another kind as PATH.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{where}: the text must be UTF-8, got the byte 0x{data[error.start]:02x}. Save the list as UTF-8; give "
            "files whose names are no text with their directory, as PATH."
        ) from error


def _check_first(line: str, path: str, where: str) -> None:
    """Refuse a csv or a list with labels: each of its lines would be a missing file, and PATH takes such lists."""
    if is_video(line) or os.path.lexists(path):
        return
    if {YOUTUBE_COLUMN, *PATH_COLUMNS} & set(re.split(r"[,;\t ]+", line.lower())):
        what = f"the header {line!r}"
    elif any(fits(line, separator) for separator in SEPARATORS):
        what = f"a path and a label, {line!r}"
    else:
        return
    raise ManifestError(f"{where}: a line of --list must be a path alone, got {what}. Give such a list as PATH.")


def _is_file(name: str) -> bool:
    return name != STDIN and Path(name).is_file()
