"""The formats of a list of videos: class folders, lists with or without a header, the official Kinetics csv."""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH118, PTH119

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from video_gn.decoding.frame_folders import NAMES_IN_WORDS, Folders
from video_gn.errors import ManifestError
from video_gn.lists.csv_lists import ALL_PARTS, SPLIT_COLUMN, Listing, Request, number_labels, rows_of_part, which_part
from video_gn.lists.file_names import (
    are_missing,
    find_part,
    found_parts,
    list_dir,
    not_videos,
    walk_videos,
)
from video_gn.lists.kinetics import read_kinetics
from video_gn.lists.rows import extensions
from video_gn.lists.scan_columns import SCAN_COLUMNS, SCAN_MARKS
from video_gn.lists.tables import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    YOUTUBE_COLUMN,
    Problems,
    Table,
    class_key,
    read_header,
    read_table,
    some,
)

log = logging.getLogger(__name__)

_SEGMENT_COLUMNS = ("start_seconds", "end_seconds")
_NO_SEGMENT_COLUMNS = ("start", "end", "start_time", "end_time", "time_start", "time_end", "start_sec", "end_sec")
_MAX_NUMBER = 2**31
_AGAIN = "Correct the line, or scan the videos again."


def read_folders(request: Request) -> Listing:
    """`root/<class>/.../<video>`, or `root/<split>/<class>/...`; the order is that of the names.

    A video is a file, or a folder of frames.
    """
    root = request.path
    if request.separator is not None or request.root is not None:
        raise ValueError(f"separator and root must be None for class folders, got {root}. Leave them out.")
    parts = found_parts(root)
    if request.split == ALL_PARTS:
        tops = [part for part in (find_part(root, name) for name in parts) if part is not None] or [root]
    elif request.split is not None:
        part = find_part(root, request.split)
        if part is None:
            has = f"it has {parts}" if parts else "it has no parts"
            raise ManifestError(f"{root}: split must be the name of a part's folder, got {request.split!r}; {has}.")
        tops = [part]
    elif parts:
        raise ManifestError(which_part(root, parts))
    else:
        tops = [root]

    found: list[tuple[str, str, str, bool]] = []  # class, path, folder below the class, is it there
    sizes: dict[Path, int] = {}
    for top in tops:
        below_top = _videos_by_class(top)
        sizes[top] = len(below_top)
        found += below_top
    if not found:
        raise ManifestError(
            f"{root}: the directory must hold folders of classes with videos ({extensions()}), or with folders of "
            f"numbered pictures ({NAMES_IN_WORDS}), got none. Is the path right?"
        )
    names = sorted({name for name, *_ in found})
    classes = tuple(names) if request.classes is None else request.classes
    numbers = {class_key(name): number for number, name in enumerate(classes)}
    unknown = [name for name in names if class_key(name) not in numbers]
    if unknown:
        raise ManifestError(
            f"{root}: folders must be of the {len(classes)} classes ({some(classes)}), got {some(unknown)}. "
            "Add them to the classes, or move them away."
        )
    splits = [os.path.basename(top) for top in tops for _ in range(sizes[top])] if tops != [root] else None
    if len(tops) > 1:
        order = sorted(range(len(found)), key=lambda place: found[place][0])
        found = [found[place] for place in order]
        splits = splits and [splits[place] for place in order]
    folders = [below for _, _, below, _ in found]
    return Listing(
        str(root),
        [path for _, path, _, _ in found],
        np.array([numbers[class_key(name)] for name, *_ in found], dtype=np.int32),
        classes,
        np.zeros(len(found), dtype=np.int32),
        np.array([not there for *_, there in found], dtype=bool),
        groups={"folder": folders} if any(folders) else {},
        splits=splits,
    )


def _videos_by_class(top: Path) -> list[tuple[str, str, str, bool]]:
    folders, loose, has_frames = list_dir(top)
    if has_frames and not loose and not folders:
        raise ManifestError(
            f"{top}: videos must lie in a folder for each class, got numbered pictures, the frames of one video. "
            "Move the folder into a class folder, or write a list."
        )
    if loose and not folders:
        raise ManifestError(
            f"{top}: videos must lie in a folder for each class, got {len(loose)} beside each other "
            f"({loose[0][0]}, ...). Move them into class folders, or write a list."
        )
    if loose:
        log.warning("%s: %d videos in no class folder are left out (%s, ...)", top, len(loose), loose[0][0])
    found = []
    empty = []
    frame_folders = []
    for folder in folders:
        path = os.path.join(top, folder)
        videos = list(walk_videos(path))
        if videos == [("", "", True)]:
            frame_folders.append(folder)
            continue
        found += [(folder, os.path.join(path, below, name), below, there) for below, name, there in videos]
        if not videos:
            empty.append(folder)
    if frame_folders and not found:
        raise ManifestError(
            f"{top}: videos must lie in a folder for each class, got {len(frame_folders)} frame folders beside each "
            f"other ({frame_folders[0]}, ...). Move them into class folders, or write a list."
        )
    if frame_folders:
        log.warning("%s: frame folders in no class folder are left out: %s", top, some(frame_folders))
    if empty:
        log.warning("%s: folders without videos are left out: %s", top, some(empty))
    return found


def read_list(request: Request) -> Listing:
    """`path label` rows, or a csv with a header."""
    base = request.path.parent if request.root is None else request.root
    table = read_table(request.path, separator=request.separator, root=base)
    names = table.column(*PATH_COLUMNS)
    if names is None:
        raise ManifestError(
            f"{request.path}:1: a header must have a column of {list(PATH_COLUMNS)}, got {table.header}. Name it so."
        )
    for name in _NO_SEGMENT_COLUMNS:
        if name in table.header:
            raise ManifestError(
                f"{request.path}:1: columns of segments must be called {list(_SEGMENT_COLUMNS)}, got {name!r}. "
                "Rename it."
            )
    problems = Problems(request.path)
    # A scan also lists what was asked for by name, whatever its name ends in; without a header it is checked already.
    if table.has_header and not table.is_scan:
        names = _check_paths(table, names, base, problems)
    labels, classes = number_labels(table, request.classes, problems)
    segments = _read_segments(table, problems)
    num_frames, fps = _read_scan(table, problems)
    problems.check()
    rows = rows_of_part(table, request.split)

    def pick(column: list[str]) -> list[str]:
        return column if len(rows) == len(column) else [column[row] for row in rows.tolist()]

    splits, errors = table.column(SPLIT_COLUMN), table.column("error") if table.is_scan else None
    paths = _join_all(base, pick(names))
    return Listing(
        str(request.path),
        paths,
        labels[rows],
        classes,
        np.array(table.lines, dtype=np.int32)[rows],
        are_missing(paths) if request.check_files else np.zeros(len(rows), dtype=bool),
        None if segments is None else segments[rows],
        {name: pick(table.column(name) or []) for name in _further_columns(table)},
        None if splits is None else pick(splits),
        None if errors is None else pick(errors),
        None if num_frames is None else num_frames[rows],
        None if fps is None else fps[rows],
    )


def _check_paths(table: Table, names: list[str], base: Path, problems: Problems) -> list[str]:
    """Paths that end as no video does are folders of frames, where most of them are folders that are there.

    Returns:
        The names; those of folders without a slash at the end.
    """
    rows = not_videos(names)
    folders, wanted = Folders(base), f"{extensions()}, or be a folder of frames that is there"
    others = [row for row in rows if names[row] not in folders]
    for row in others if 2 * len(others) >= len(rows) else ():
        problems.add(table.lines[row], f"path must end in one of {wanted}, got {names[row]!r}. Correct the line.")
    return [name.rstrip("/") for name in names] if rows else names


def _further_columns(table: Table) -> list[str]:
    known = {*PATH_COLUMNS, *LABEL_COLUMNS, *_SEGMENT_COLUMNS, SPLIT_COLUMN, *(SCAN_COLUMNS if table.is_scan else ())}
    return [name for name in table.header if name not in known]


def _join_all(base: Path, names: list[str]) -> list[str]:
    """os.path.join of each, in a quarter of the time where that is nothing but one string after the other."""
    if os.name != "posix":
        return [os.path.join(base, name) for name in names]
    start = os.path.join(base, "")
    return [name if name[:1] == "/" else start + name for name in names]


def _read_scan(table: Table, problems: Problems) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A scan's numbers of frames, int32 (n,), 0 for none, and rates, float64 (n,), NaN for none."""
    if not table.is_scan:
        return None, None
    counts = _read_numbers(table, "num_frames", int, problems)
    rates = _read_numbers(table, "fps", float, problems)
    return (None if counts is None else np.nan_to_num(counts).astype(np.int32)), rates


def _read_numbers(table: Table, name: str, kind: type[int] | type[float], problems: Problems) -> np.ndarray | None:
    """A column of numbers above 0, float64 (n,), NaN for none; None without the column."""
    column = table.column(name)
    if column is None:
        return None

    def read(text: str) -> float:
        try:
            value = kind(text) if text else math.nan
        except ValueError:
            return -1.0
        return value if not text or 0 < value < _MAX_NUMBER else -1.0

    # Many texts are equal: each is read once.
    values = {text: read(text) for text in set(column)}
    if -1.0 in values.values():
        what = "an integer" if kind is int else "a number"
        for text, line in zip(column, table.lines, strict=True):
            if values[text] < 0:
                problems.add(line, f"{name} must be {what} above 0 or empty, got {text!r}. {_AGAIN}")
    return np.fromiter(map(values.__getitem__, column), dtype=np.float64, count=len(column))


def _read_segments(table: Table, problems: Problems) -> np.ndarray | None:
    columns = [table.column(name) for name in _SEGMENT_COLUMNS]
    if not any(text for column in columns if column for text in column):
        return None
    segments = np.full((len(table), 2), np.nan)
    for row, line in enumerate(table.lines):
        texts = [column[row] if column else "" for column in columns]
        try:
            start, end = (float(text) if text else None for text in texts)
        except ValueError:
            problems.add(
                line, f"start_seconds and end_seconds must be numbers or empty, got {texts}. Correct the line."
            )
            continue
        if not (0 <= (start or 0) < (math.inf if end is None else end)) or end == math.inf:
            problems.add(line, f"a segment must have 0 <= start_seconds < end_seconds, got {texts}. Correct the line.")
        segments[row] = [math.nan if value is None else value for value in (start, end)]
    return segments


FORMATS: dict[str, Callable[[Request], Listing]] = {
    "folders": read_folders,
    "list": read_list,
    "kinetics": read_kinetics,
}


def find_format(path: Path, separator: str | None) -> str:
    """The name of a path's format: a directory is class folders, a header with youtube_id is Kinetics."""
    if path.is_dir():
        return "folders"
    header = read_header(path, separator=separator)
    return "kinetics" if YOUTUBE_COLUMN in header and not set(header) >= SCAN_MARKS else "list"
