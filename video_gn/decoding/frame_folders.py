"""Frame folders: directories whose numbered pictures are the frames of one video.

A picture counts by its name: `img_00001.jpg`, `image_00001.png`, `frame_000001.jpeg`, `frame000001.webp`,
`00001.jpg`; any number of zeros, either case. Other files, such as the optical flow (`flow_x_00001.jpg`) that the
same tools write beside the frames, are passed over. Numbers begin at 0 or 1 and have no gaps.

Source: mmaction2 reads `img_{:05}.jpg` from 1 on (its `RawframeDataset`); `image_`, `frame_` and bare numbers are
what other extractions of UCF-101, EPIC-KITCHENS and Something-Something V2 come with.
"""

# os.path, not pathlib: this runs for each of 240,000 folders.
# ruff: noqa: PTH112, PTH116, PTH118, PTH208

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from video_gn.errors import DecodeError

FRAME_EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp")
_NAME = re.compile(
    rf"((?:(?:img|image|frame)[_-]?)?)([0-9]+)(?:{'|'.join(map(re.escape, FRAME_EXTENSIONS))})", re.IGNORECASE
)
NAMES_IN_WORDS = "img_00001.jpg, frame_000001.png, 00001.jpg, ..."
NO_FRAMES = f"a directory, not a video file, and without numbered pictures ({NAMES_IN_WORDS})"


class FolderError(DecodeError):
    """A directory where a video file is read: it may be a frame folder.

    Args:
        path: the directory's.
        reason: one line, without the path.
    """

    def __init__(self, path: str, reason: str = "a directory, not a video file") -> None:
        super().__init__(path, reason)


def is_frame(name: str) -> bool:
    """Whether a file's name is that of a numbered picture."""
    return _NAME.fullmatch(name) is not None


def frame_names(path: str, names: Sequence[str]) -> list[str]:
    """The numbered pictures of a directory, in their order.

    Args:
        path: of the directory, for messages.
        names: of all that is in it.

    Raises:
        DecodeError: for no picture, pictures of two series, a number that is there twice, and one that is missing.
    """
    series: dict[str, str] = {}
    by_number: dict[int, str] = {}
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        first = series.setdefault(match[1].lower(), name)
        if len(series) > 1:
            other = next(iter(series.values()))
            raise DecodeError(path, f"pictures of two series are in it ({other} and {first}); leave one of them there")
        other = by_number.setdefault(int(match[2]), name)
        if other != name:
            raise DecodeError(path, f"picture {int(match[2])} is there twice ({other} and {name})")
    if not by_number:
        raise DecodeError(path, NO_FRAMES)
    numbers = sorted(by_number)
    start = min(numbers[0], 1)
    for number, found in enumerate(numbers, start):
        if number != found:
            raise DecodeError(
                path, f"picture {number} is missing: {by_number[found]} is the next of its {len(numbers)} pictures"
            )
    return [by_number[number] for number in numbers]


def list_frames(path: str) -> list[str]:
    """Names of a frame folder's pictures, in their order; one listing of the directory.

    Raises:
        DecodeError: see `frame_names`; and for a directory that cannot be listed.
    """
    try:
        names = os.listdir(path)
    except OSError as error:
        raise DecodeError(path, f"the directory cannot be listed ({error.strerror})") from error
    return frame_names(path, names)


def folder_state(path: str) -> tuple[int, int]:
    """Bytes of a directory's numbered pictures, and when the last of them, or the directory, was changed.

    Raises:
        OSError: where it cannot be listed.
    """
    size, mtime = 0, os.stat(path).st_mtime_ns
    with os.scandir(path) as entries:
        for entry in entries:
            if is_frame(entry.name):
                status = entry.stat()
                size, mtime = size + status.st_size, max(mtime, status.st_mtime_ns)
    return size, mtime


class Folders:
    """Which paths of a list are directories: each parent is listed once, and no directory is asked for by itself.

    Args:
        base: where relative paths start.
    """

    def __init__(self, base: str | Path) -> None:
        self.base = os.fspath(base)
        self._below: dict[str, frozenset[str]] = {}

    def __contains__(self, name: str) -> bool:
        if not name or "\0" in name:
            return False
        path = os.path.join(self.base, name.rstrip("/") or "/")
        parent, last = os.path.split(path)
        if last in ("", os.curdir, os.pardir):
            return os.path.isdir(path)
        if parent not in self._below:
            try:
                with os.scandir(parent or os.curdir) as entries:
                    self._below[parent] = frozenset(entry.name for entry in entries if entry.is_dir())
            except OSError:  # no such directory, or one that may not be read: what is in it cannot be opened
                self._below[parent] = frozenset()
        return last in self._below[parent]

    def readings(self, name: str, separator: str | None) -> list[str]:
        """What of a line's text before the label is a directory: all of it, or what comes before a whole number.

        mmaction2's lists of frame folders have lines `folder num_frames label`. The pictures are counted all the same.

        Returns:
            None, one, or both of these, without a slash at the end.
        """
        texts = (name, without_count(name, separator))
        return [text.rstrip("/") for text in texts if text is not None and text in self]


def without_count(name: str, separator: str | None) -> str | None:
    """`folder 163` -> `folder`; None for a text that does not end in a whole number."""
    if separator is None:
        return None
    shorter, _, count = name.rpartition(separator)
    return shorter.strip() if shorter.strip() and count.strip().isascii() and count.strip().isdecimal() else None
