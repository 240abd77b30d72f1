"""The formats of a list of videos: class folders, lists with or without a header, the official Kinetics csv."""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH118, PTH119, PTH120, PTH122, PTH206

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from video_gn.data._files import are_missing, find_part, found_parts, is_video, list_dir, part_names, walk_videos
from video_gn.data._tables import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    YOUTUBE_COLUMN,
    Problems,
    Table,
    class_key,
    extensions,
    read_header,
    read_table,
    some,
)
from video_gn.errors import ManifestError

log = logging.getLogger(__name__)

SPLIT_COLUMN = "split"
ALL_PARTS = "all"
_SEGMENT_COLUMNS = ("start_seconds", "end_seconds")
_NO_SEGMENT_COLUMNS = ("start", "end", "start_time", "end_time", "time_start", "time_end", "start_sec", "end_sec")
_KINETICS_COLUMNS = ("time_start", "time_end")
# Folders below the root in which Kinetics' files are looked for: <split>/<class>/<file>.
_KINETICS_DEPTH = 2


@dataclass
class Listing:
    """What a reader found, as columns of equal length.

    Args:
        source: the file or folder.
        paths: ready to open.
        labels: int32 (n,), -1 for none.
        classes: names by number.
        lines: 1-based lines in `source`; 0 for folders.
        missing: bool (n,), listed and not there.
        segments: float64 (n, 2), NaN for none; None where no row has one.
        groups: further columns.
    """

    source: str
    paths: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    lines: np.ndarray
    missing: np.ndarray
    segments: np.ndarray | None = None
    groups: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What a reader is asked for; see `read_manifest`."""

    path: Path
    root: Path | None
    classes: tuple[str, ...] | None
    split: str | None
    separator: str | None
    check_files: bool


def read_folders(request: Request) -> Listing:
    """`root/<class>/.../<video>`, or `root/<split>/<class>/...`; the order is that of the names."""
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
        raise ManifestError(_which_part(root, parts))
    else:
        tops = [root]

    found: list[tuple[str, str, str, bool]] = []  # class, path, folder below the class, is it there
    for top in tops:
        found += _videos_by_class(top)
    if not found:
        raise ManifestError(
            f"{root}: the directory must hold folders of classes with videos ({extensions()}), got none. "
            "Is the path right?"
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
    if len(tops) > 1:
        found.sort(key=lambda row: row[0])
    folders = [below for _, _, below, _ in found]
    return Listing(
        str(root),
        [path for _, path, _, _ in found],
        np.array([numbers[class_key(name)] for name, *_ in found], dtype=np.int32),
        classes,
        np.zeros(len(found), dtype=np.int32),
        np.array([not there for *_, there in found], dtype=bool),
        groups={"folder": folders} if any(folders) else {},
    )


def _videos_by_class(top: Path) -> list[tuple[str, str, str, bool]]:
    folders, loose, _ = list_dir(top)
    if loose and not folders:
        raise ManifestError(
            f"{top}: videos must lie in a folder for each class, got {len(loose)} beside each other "
            f"({loose[0][0]}, ...). Move them into class folders, or write a list."
        )
    if loose:
        log.warning("%s: %d videos in no class folder are left out (%s, ...)", top, len(loose), loose[0][0])
    found = []
    empty = []
    for folder in folders:
        path = os.path.join(top, folder)
        videos = [(folder, os.path.join(path, below, name), below, there) for below, name, there in walk_videos(path)]
        found += videos
        if not videos:
            empty.append(folder)
    if empty:
        log.warning("%s: folders without videos are left out: %s", top, some(empty))
    return found


def read_list(request: Request) -> Listing:
    """`path label` rows, or a csv with a header."""
    table = read_table(request.path, separator=request.separator)
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
    base = request.path.parent if request.root is None else request.root
    problems = Problems(request.path)
    for name, line in zip(names, table.lines, strict=True):
        if not is_video(name):
            problems.add(line, f"path must end in one of {extensions()}, got {name!r}. Correct the line.")
    labels, classes = _number_labels(table, request.classes, problems)
    segments = _read_segments(table, problems)
    problems.check()
    known = {*PATH_COLUMNS, *LABEL_COLUMNS, *_SEGMENT_COLUMNS, SPLIT_COLUMN}
    rows = _rows_of_part(table, request.split)
    paths = [os.path.join(base, names[row]) for row in rows]
    return Listing(
        str(request.path),
        paths,
        labels[rows],
        classes,
        np.array(table.lines, dtype=np.int32)[rows],
        are_missing(paths) if request.check_files else np.zeros(len(rows), dtype=bool),
        None if segments is None else segments[rows],
        {
            name: [table.rows[row][place] for row in rows]
            for place, name in enumerate(table.header)
            if name not in known
        },
    )


def read_kinetics(request: Request) -> Listing:
    """The official csv (label, youtube_id, time_start, time_end, split) over `<id>_<start>_<end>.mp4` files.

    The files lie flat, in class folders (with spaces or underscores), or in class folders of a part's
    folder; they may be of any video format, and have a second extension, as downloaders leave it.
    """
    table = read_table(request.path, separator=request.separator)
    absent = [name for name in (YOUTUBE_COLUMN, *_KINETICS_COLUMNS) if name not in table.header]
    if absent:
        raise ManifestError(f"{request.path}:1: the header of a Kinetics csv must have {absent}, got {table.header}.")
    problems = Problems(request.path)
    labels, classes = _number_labels(table, request.classes, problems)
    stems = _kinetics_stems(table, problems)
    problems.check()
    rows = _rows_of_part(table, request.split)
    base = request.path.parent if request.root is None else request.root
    index = _index_by_stem(base) if request.check_files else {}
    keys = [class_key(name) for name in classes]
    other_classes = set(keys)
    paths, missing = [], np.zeros(len(rows), dtype=bool)
    for place, row in enumerate(rows):
        label = int(labels[row])
        own = keys[label] if label >= 0 else None
        found = _choose(index.get(stems[row], ()), own, other_classes, request.split)
        missing[place] = found is None and request.check_files
        if found is None:
            found = os.path.join(classes[label] if label >= 0 else "", f"{stems[row]}.mp4")
        paths.append(os.path.join(base, found))
    lines = np.array(table.lines, dtype=np.int32)[rows]
    return Listing(str(request.path), paths, labels[rows], classes, lines, missing)


def _kinetics_stems(table: Table, problems: Problems) -> list[str]:
    places = [table.header.index(name) for name in (YOUTUBE_COLUMN, *_KINETICS_COLUMNS)]
    stems = []
    for row, line in zip(table.rows, table.lines, strict=True):
        name, *times = (row[place] for place in places)
        try:
            start, end = (int(float(time)) for time in times)
        except (ValueError, OverflowError):
            problems.add(line, f"time_start and time_end must be seconds, got {times}. Correct the line.")
            continue
        if not name or not 0 <= start < end:
            problems.add(
                line, f"a row must have a youtube_id and 0 <= time_start < time_end, got {row}. Correct the line."
            )
        stems.append(f"{name}_{start:06d}_{end:06d}")
    return stems


def _index_by_stem(root: Path) -> dict[str, tuple[str, ...]]:
    """Names without extensions to paths below `root`; one listing of each directory, no question about a file."""
    index: dict[str, tuple[str, ...]] = {}
    if not root.is_dir():
        raise ManifestError(f"{root}: root must be the directory of the videos, got something else. Set root.")
    for below, name, there in walk_videos(root, max_depth=_KINETICS_DEPTH):
        if not there:
            continue
        stem = os.path.splitext(name)[0]
        while is_video(stem):  # a.mp4.mkv
            stem = os.path.splitext(stem)[0]
        index[stem] = (*index.get(stem, ()), os.path.join(below, name))
    return index


def _choose(found: Sequence[str], own: str | None, all_classes: set[str], split: str | None) -> str | None:
    """Of the files with a row's name the one in its class's folder, else one in no class's folder."""
    folders = [os.path.dirname(path) for path in found]
    keys = [class_key(os.path.basename(folder)) for folder in folders]
    parts = part_names(split) if split else ()
    ranked = sorted(
        (key != own, folder.split(os.sep)[0] not in parts, path)
        for path, folder, key in zip(found, folders, keys, strict=True)
        if own is None or key == own or key not in all_classes
    )
    return ranked[0][2] if ranked else None


def _number_labels(
    table: Table, classes: tuple[str, ...] | None, problems: Problems
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, int32 (n,), -1 for none, and the classes, of all rows, whatever their part."""
    column = table.column(*LABEL_COLUMNS)
    if column is None or not any(column):
        return np.full(len(table.rows), -1, dtype=np.int32), classes or ()
    distinct = set(column)
    for label, line in zip(column, table.lines, strict=True):
        if not label:
            problems.add(line, "label must be a class, got nothing. Write it, or leave all labels out.")
    distinct.discard("")
    are_numbers = all(label.removeprefix("-").isdecimal() and label.isascii() for label in distinct)
    if classes is None and are_numbers:
        classes = _count_classes(table.path, {int(label) for label in distinct})
    elif classes is None:
        classes = tuple(sorted(distinct))
    by_key = {class_key(name): number for number, name in enumerate(classes)}
    # Where classes are called by digits, a label is a name: as a number it could mean another class.
    as_names = not are_numbers or any(name.isdecimal() for name in classes)
    numbers: dict[str, int] = {"": -1}
    for label in distinct:
        number = by_key.get(class_key(label), -1) if as_names else int(label)
        if 0 <= number < len(classes):
            numbers[label] = number
    rule = f"one of the {len(classes)} classes ({some(classes)})" if as_names else f"a number in [0, {len(classes)})"
    for label, line in zip(column, table.lines, strict=True):
        if label not in numbers:
            problems.add(line, f"label must be {rule}, got {label!r}. Correct the line or the classes.")
    return np.array([numbers.get(label, -1) for label in column], dtype=np.int32), classes


def _count_classes(path: Path, numbers: set[int]) -> tuple[str, ...]:
    """Classes "0" to the highest number, where a list has numbers and nobody gives names."""
    highest = max(numbers)
    if highest > 100_000:
        raise ManifestError(
            f"{path}: labels as numbers must be below 100,000 without classes, got {highest}. Give classes."
        )
    holes = [str(number) for number in range(highest + 1) if number not in numbers]
    if holes:
        log.warning(
            "%s: no video has the label %s; %d classes are assumed. Give classes to be sure.",
            path,
            some(holes),
            highest + 1,
        )
    return tuple(str(number) for number in range(highest + 1))


def _read_segments(table: Table, problems: Problems) -> np.ndarray | None:
    columns = [table.column(name) for name in _SEGMENT_COLUMNS]
    if not any(text for column in columns if column for text in column):
        return None
    segments = np.full((len(table.rows), 2), np.nan)
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


def _rows_of_part(table: Table, split: str | None) -> np.ndarray:
    """Places of the rows of a part, int64; all rows where nothing is asked and there is but one part."""
    column = table.column(SPLIT_COLUMN)
    if split == ALL_PARTS or (split is None and column is None):
        return np.arange(len(table.rows))
    if column is None:
        raise ManifestError(f"{table.path}: split must be None for a list without a column 'split', got {split!r}.")
    present = sorted(set(column))
    if split is None:
        if len(present) > 1:
            raise ManifestError(_which_part(table.path, present))
        return np.arange(len(table.rows))
    wanted = {name.lower() for name in part_names(split)}
    rows = np.flatnonzero([value.lower() in wanted for value in column])
    if not len(rows):
        raise ManifestError(f"{table.path}: split must be one of {present}, got {split!r}. No row is of that part.")
    return rows


def _which_part(path: Path, parts: Sequence[str]) -> str:
    return f"{path}: split must be one of {list(parts)} or 'all', got None. Say which part is meant."


FORMATS: dict[str, Callable[[Request], Listing]] = {
    "folders": read_folders,
    "list": read_list,
    "kinetics": read_kinetics,
}


def find_format(path: Path, separator: str | None) -> str:
    """The name of a path's format: a directory is class folders, a header with youtube_id is Kinetics."""
    if path.is_dir():
        return "folders"
    return "kinetics" if YOUTUBE_COLUMN in read_header(path, separator=separator) else "list"
