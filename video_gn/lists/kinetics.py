"""The official csv of Kinetics, and the files that downloaders make of it."""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH118, PTH119, PTH120, PTH122, PTH206

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from video_gn.errors import ManifestError
from video_gn.lists.csv_lists import SPLIT_COLUMN, Listing, Request, number_labels, rows_of_part
from video_gn.lists.file_names import is_video, part_names, walk_videos
from video_gn.lists.tables import YOUTUBE_COLUMN, Problems, Table, class_key, read_table

_KINETICS_COLUMNS = ("time_start", "time_end")
# Folders below the root in which Kinetics' files are looked for: <split>/<class>/<file>.
_KINETICS_DEPTH = 2


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
    labels, classes = number_labels(table, request.classes, problems)
    stems = _kinetics_stems(table, problems)
    problems.check()
    rows = rows_of_part(table, request.split)
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
    splits = table.column(SPLIT_COLUMN)
    return Listing(
        str(request.path),
        paths,
        labels[rows],
        classes,
        lines,
        missing,
        splits=None if splits is None else [splits[row] for row in rows.tolist()],
    )


def _kinetics_stems(table: Table, problems: Problems) -> list[str]:
    columns = [table.column(name) or [] for name in (YOUTUBE_COLUMN, *_KINETICS_COLUMNS)]
    stems = []
    for name, *times, line in zip(*columns, table.lines, strict=True):
        try:
            start, end = (int(float(time)) for time in times)
        except (ValueError, OverflowError):
            problems.add(line, f"time_start and time_end must be seconds, got {times}. Correct the line.")
            continue
        if not name or not 0 <= start < end:
            problems.add(
                line,
                f"a row must have a youtube_id and 0 <= time_start < time_end, got {[name, *times]}. Correct the line.",
            )
        stems.append(f"{name}_{start:06d}_{end:06d}")
    return stems


def _index_by_stem(root: Path) -> dict[str, tuple[str, ...]]:
    """Names without extensions to paths below `root`; one listing of each directory, no question about a file."""
    index: dict[str, tuple[str, ...]] = {}
    if not root.is_dir():
        raise ManifestError(f"{root}: root must be the directory of the videos, got something else. Set root.")
    for below, name, there in walk_videos(root, max_depth=_KINETICS_DEPTH):
        if not there or not name:
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
