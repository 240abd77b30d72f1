"""Names of video files: what lies in directories, and which listed files exist.

On a shared file system a question about one file costs a round trip, and a directory's listing answers thousands at
once: directories are listed, and their files are not looked up one by one.
"""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH100, PTH112, PTH113, PTH116, PTH118, PTH119, PTH122

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from video_gn.decoding.frame_folders import folder_name, is_frame
from video_gn.decoding.tar_members import exists, is_member
from video_gn.errors import ManifestError

log = logging.getLogger(__name__)

# fmt: off
VIDEO_EXTENSIONS = frozenset((
    ".3g2", ".3gp", ".3gp2", ".3gpp", ".3gpp2", ".amv", ".asf", ".avc", ".avi", ".divx", ".dv", ".f4p", ".f4v", ".flv",
    ".gif", ".h264", ".h265", ".hevc", ".ismv", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4p", ".m4v", ".mj2",
    ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mod", ".mov", ".mp2v", ".mp4", ".mp4v", ".mpe", ".mpeg", ".mpeg1", ".mpeg2",
    ".mpeg4", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".tp", ".trp",
    ".ts", ".vob", ".vro", ".webm", ".wmv", ".wtv", ".xvid", ".y4m",
))
# What systems leave in folders, in lower case; names that begin with a dot are never looked at.
_OF_SYSTEMS = frozenset((
    "$recycle.bin", "@eadir", "__macosx", "__pycache__", "desktop.ini", "ehthumbs.db", "icon\r", "lost+found",
    "system volume information", "thumbs.db",
))
# fmt: on
# What comes before the extension of a name without a stem.
_NO_STEM = ("", ".", os.sep)
# With this many files of one directory or more, the directory is listed.
_LIST_FROM = 16
_NUM_ENDINGS_SHOWN = 6


def is_video(name: str) -> bool:
    """Whether the name has a video's extension, in either case."""
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


def not_videos(names: Sequence[str]) -> list[int]:
    """Places of the names without a video's extension."""
    # A name that is only an extension (".mp4") has none. `is_video` decides what the fast test rejects.
    return [
        place
        for place, name in enumerate(names)
        if (name[-4:] not in VIDEO_EXTENSIONS or name[-5:-4] in _NO_STEM) and not is_video(name)
    ]


def list_dir(
    directory: str | Path, *, left_out: Counter[str] | None = None
) -> tuple[list[str], list[tuple[str, bool]], bool]:
    """One directory's visible entries, sorted by name; links are followed. ManifestError if it cannot be listed.

    Args:
        directory: the directory.
        left_out: counts, by ending, the files that are neither videos nor in a frame folder.

    Returns:
        names of folders; (name, whether it is there) of videos, False for a link that leads nowhere;
        and whether other files are numbered pictures.
    """
    folders: list[str] = []
    videos: list[tuple[str, bool]] = []
    others: list[str] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _OF_SYSTEMS:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_video(entry.name):
                    videos.append((entry.name, entry.is_file()))
                else:
                    others.append(entry.name)
    except OSError as error:
        raise ManifestError(f"{directory}: the directory cannot be listed: {error.strerror}") from error
    folder = folder_name(directory)
    has_frames = any(is_frame(name, folder) for name in others)
    if left_out is not None and (videos or not has_frames):
        left_out.update(ending(name) for name in others)
    return sorted(folders), sorted(videos), has_frames


def ending(name: str) -> str:
    """A name's ending in lower case, ".txt", for messages."""
    return os.path.splitext(name)[1].lower() or "without an ending"


def warn_of_left_out(origin: str | Path, left_out: Counter[str]) -> None:
    """Log how many files of a folder are no videos, by their endings."""
    if left_out:
        by_number = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
        counts = [f"{number} {end}" for end, number in by_number[:_NUM_ENDINGS_SHOWN]]
        rest = sum(number for _, number in by_number[_NUM_ENDINGS_SHOWN:])
        counts += [f"{rest} others"] if rest else []
        log.warning("%s: what is no video by its ending is left out: %s", origin, ", ".join(counts))


def walk_videos(
    directory: str | Path, *, max_depth: int | None = None, left_out: Counter[str] | None = None
) -> Iterator[tuple[str, str, bool]]:
    """All videos below a directory: its own first, then folder by folder in the order of names.

    A directory with numbered pictures and no video file, in it or below, is one video: a frame folder.

    Args:
        directory: the top.
        max_depth: folders to go down, at least 0; None is no limit. A frame folder counts as a file, not as a level.
        left_out: see `list_dir`; if it is given, links that are passed over are named in a warning.

    Yields:
        (folder below `directory` with "/" between parts, "" for itself; name of the file or frame folder, "" if
        `directory` is one; whether it is there)
    """
    # Folders above the current one: a link to one of them is a loop, or brings what is not of this directory.
    tops = (Path(os.path.abspath(directory)), Path(os.path.realpath(directory)))
    above = {(status.st_dev, status.st_ino) for top in tops for status in map(os.stat, top.parents)}

    def walk(path: str, below: str, depth: int) -> Iterator[tuple[str, str, bool, bool]]:
        """The same, and whether it is a frame folder."""
        status = os.stat(path)
        key = (status.st_dev, status.st_ino)
        if key in above:
            if left_out is not None:
                log.warning("%s: this link is passed over, since it leads to a folder above it", path)
            return
        above.add(key)
        folders, videos, has_frames = list_dir(path, left_out=left_out)
        is_too_deep = max_depth is not None and depth > max_depth
        if is_too_deep:  # only a frame folder is a video of the folder above
            folders, videos = [], videos if has_frames else []
        else:
            yield from ((below, name, there, False) for name, there in videos)
        deeper = walk_all(path, folders, below, depth)
        if has_frames and not videos:
            found = list(deeper)
            # Frame folders below pictures are flow and the like; files below pictures are videos with thumbnails.
            if all(is_folder for *_, is_folder in found):
                found = [(*os.path.split(below), True, True)]
            else:
                log.warning("%s: its numbered pictures are left out, since videos lie below it", path)
            yield from found
        else:
            yield from deeper
        above.discard(key)

    def walk_all(path: str, folders: list[str], below: str, depth: int) -> Iterator[tuple[str, str, bool, bool]]:
        for folder in folders:
            yield from walk(os.path.join(path, folder), f"{below}/{folder}" if below else folder, depth + 1)

    for below, name, there, _ in walk(os.fspath(directory), "", 0):
        yield below, name, there


def holds_frame_folders(directory: str | Path, folders: Sequence[str]) -> bool:
    """Whether a directory's folders are videos (frame folders) and not classes; the first that is not empty decides."""
    for folder in folders:
        below, videos, has_frames = list_dir(os.path.join(directory, folder))
        if below or videos or has_frames:
            return has_frames and not videos
    return False


def _is_folder_of_frames(path: str) -> bool:
    """Whether a directory may be a frame folder; it is only listed if its name is like a video file's."""
    if not is_video(os.path.basename(path)):
        return os.path.isdir(path)
    try:
        with os.scandir(path) as entries:
            return any(is_frame(entry.name, os.path.basename(path)) for entry in entries)
    except OSError:
        return False


def are_missing(paths: Sequence[str]) -> np.ndarray:
    """Which videos, files or frame folders, do not exist: bool (n,)."""
    missing = np.zeros(len(paths), dtype=bool)
    by_directory: dict[str, tuple[list[int], list[str]]] = {}
    for index, path in enumerate(paths):
        if is_member(path):
            missing[index] = not exists(path)
            continue
        directory, slash, name = path.rpartition(os.sep)
        indices, names = by_directory.setdefault(directory or slash, ([], []))
        indices.append(index)
        names.append(name)
    for directory, (indices, names) in by_directory.items():
        if len(indices) < _LIST_FROM:
            for index in indices:
                missing[index] = not (os.path.isfile(paths[index]) or _is_folder_of_frames(paths[index]))
            continue
        try:
            with os.scandir(directory or ".") as entries:
                there = {e.name for e in entries if e.is_file() or (e.is_dir() and _is_folder_of_frames(e.path))}
        except OSError:  # no such directory, or no permission: its files cannot be opened
            there = set()
        missing[indices] = [name not in there for name in names]
    return missing
