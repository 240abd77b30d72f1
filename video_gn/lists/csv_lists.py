"""Lists with one video a line to columns: `path label`, csv and parquet, and the official csv of Kinetics."""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH118, PTH119, PTH120, PTH122, PTH206

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from video_gn.decoding.frame_folders import Folders
from video_gn.errors import ManifestError
from video_gn.lists.class_names import class_key, distinct_classes
from video_gn.lists.file_names import is_video, not_videos, walk_videos
from video_gn.lists.lines import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    YOUTUBE_COLUMN,
    ListTable,
    Problems,
    extensions,
    some,
)
from video_gn.lists.listing import (
    SEGMENT_COLUMNS,
    SPLIT_COLUMN,
    WHOLE_NUMBER,
    Listing,
    check_odd_labels,
    check_segment_columns,
)
from video_gn.lists.part_names import is_part
from video_gn.lists.scan_columns import SCAN_COLUMNS
from video_gn.shown import count

log = logging.getLogger(__name__)

_SEVERAL = re.compile(r"[0-9]+(?:[\s,;|]+[0-9]+)+|\[.*,.*\]")
_NO_LABEL_COLUMNS = (
    "labels",
    "label_id",
    "label_name",
    "class_id",
    "class_name",
    "classes",
    "category",
    "action",
    "target",
)
_MAX_NUMBER = 2**31
_AGAIN = "Correct the line, or scan the videos again."
_KINETICS_COLUMNS = ("time_start", "time_end")
# Folder of files that the download gives in place of corrupted ones: replacement/replacement_for_corrupted_k400/<file>.
_REPLACEMENT = re.compile(r"(?:.*/)?replacement[^/]*/.*", re.IGNORECASE)
# Folders below the root in which Kinetics' files are looked for: <split>/<class>/<file>.
_KINETICS_DEPTH = 2


def read_list(table: ListTable, base: Path, classes: tuple[str, ...] | None, *, first: int | None = None) -> Listing:
    """All rows of a list with paths, whatever their part; their files are not looked for.

    Relative paths start from `base`; `classes` are names by number, None takes them from the list; `first` is the
    number that labels begin at, if that is known.

    Raises:
        ManifestError: for missing columns and for fields that cannot be used; names the lines.
    """
    names = table.column(*PATH_COLUMNS)
    if names is None:
        raise ManifestError(
            f"{table.path}:1: a header must have a column of {list(PATH_COLUMNS)}, got {table.header}. Name it so."
        )
    check_segment_columns(table.path, table.columns)
    problems = Problems(table.path)
    # A scan lists given files whatever their extension; lists without a header are checked already.
    if table.has_header and not table.is_scan:
        names = _check_paths(table, names, base, problems)
    labels, classes = _number_labels(table, classes, problems, first=first, paths=names)
    segments = _read_segments(table, problems)
    num_frames = _read_numbers(table, "num_frames", int, problems)
    fps = _read_numbers(table, "fps", float, problems)
    problems.check()
    known = {*PATH_COLUMNS, *LABEL_COLUMNS, *SEGMENT_COLUMNS, SPLIT_COLUMN, *(SCAN_COLUMNS if table.is_scan else ())}
    return Listing(
        str(table.path),
        _join_all(base, names),
        labels,
        classes,
        np.array(table.lines, dtype=np.int32),
        np.zeros(len(table), dtype=bool),
        segments,
        {name: table.column(name) or [] for name in table.header if name not in known},
        table.column(SPLIT_COLUMN),
        table.column("error") if table.is_scan else None,
        None if num_frames is None else np.nan_to_num(num_frames).astype(np.int32),
        fps,
    )


def _number_labels(
    table: ListTable,
    classes: tuple[str, ...] | None,
    problems: Problems,
    *,
    first: int | None = None,
    paths: Sequence[str] = (),
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, int32 (n,), -1 for none, and the classes.

    Args:
        table: the list.
        classes: names by number; None takes them from the labels.
        problems: gets the labels that cannot be used.
        first: number that labels begin at, where the classes' file says so.
        paths: their folders tell it too, if these are classes.
    """
    column = table.column(*LABEL_COLUMNS)
    if column is None and (others := [name for name in table.header if name in _NO_LABEL_COLUMNS]):
        text = "%s: no column is called 'label', so its videos have none; %r is not taken as one"
        log.warning(text, table.path, others[0])
    if column is None or not any(column):
        return np.full(len(table), -1, dtype=np.int32), classes or table.classes or ()
    if classes is None and table.classes is not None:
        classes, first = table.classes, 0
    _check_gaps(table, column, problems)
    wrong = unusable_labels(set(column), known=classes or ())
    distinct = set(column) - wrong.keys() - {""}
    if not distinct:
        problems.add_all(column, table.lines, wrong)
        return np.full(len(table), -1, dtype=np.int32), classes or ()
    whole = {label: int(label.partition(".")[0]) for label in distinct if WHOLE_NUMBER.fullmatch(label)}
    are_numbers = len(whole) == len(distinct)
    check_odd_labels(table.path, column, table.lines, whole, classes)
    if classes is None and not are_numbers:
        classes = distinct_classes(distinct, origin=str(table.path))
    elif classes is None:
        highest = max(whole, key=lambda label: whole[label])
        classes = _count_classes(table.path, set(whole.values()), table.lines[column.index(highest)])
    by_key = {class_key(name): number for number, name in enumerate(classes)}
    # If classes have numbers as names, a label is a name: as a number it could mean another class.
    as_names = not are_numbers or any(map(WHOLE_NUMBER.fullmatch, classes))
    hint = ""
    if as_names:
        # A table program may have written a class "0" as "00" or "0.0".
        numbers = {label: by_key.get(class_key(label), by_key.get(str(whole.get(label)), -1)) for label in distinct}
        rule = f"one of the {count(len(classes), 'class', 'classes')} ({some(classes)})"
    else:
        first, is_known = _first_number(table, column, whole, by_key, first, paths)
        numbers = {label: number - first for label, number in whole.items()}
        rule = f"a number in [{first}, {first + len(classes)})"
        hint = "" if is_known else _hint_at_first(table.path, set(whole.values()), classes)
    wrong |= {
        label: f"label must be {rule}, got {label!r}. Correct the line or the classes.{hint}"
        for label, number in numbers.items()
        if not 0 <= number < len(classes)
    }
    problems.add_all(column, table.lines, wrong)
    numbers |= dict.fromkeys(["", *wrong], -1)
    return np.array([numbers[label] for label in column], dtype=np.int32), classes


def _check_gaps(table: ListTable, column: list[str], problems: Problems) -> None:
    """Note rows without a label, of which a test may have some."""
    if "" not in column:
        return
    splits = table.column(SPLIT_COLUMN) or [""] * len(table)
    for label, split, line in zip(column, splits, table.lines, strict=True):
        if not (label or is_part(split, "test")):
            problems.add(line, "label must be a class, got nothing. Write it, or leave all labels out.")


def unusable_labels(distinct: set[str], known: Sequence[str] = ()) -> dict[str, str]:
    """Messages for labels that are no class: "1,3", "[0, 2]", "run|jump" beside "run" or "sit|run"; "nan".

    Of those in which "|" alone says so, names of classes that are `known` are left.
    """
    pieces_of = {label: re.split(r"\s*\|\s*", label) for label in distinct if "|" in label}
    places: dict[str, set[int]] = {}
    for pieces in pieces_of.values():
        for place, piece in enumerate(pieces):
            places.setdefault(piece, set()).add(place)
    # A name of parts, "ball|tennis", has each in its own place.
    are_sets = any(len(found) > 1 for found in places.values()) and 2 * len(pieces_of) > len(distinct)
    wrong = {
        label: f"a video must have one label, got several in {label!r}. Lists with several labels a video cannot be "
        "used: keep one of them."
        for label in distinct
        if _SEVERAL.fullmatch(label)
        or (are_sets and label in pieces_of and label not in known)
        or (len(pieces := re.split(r"\s*[,;|]\s*", label)) > 1 and distinct.issuperset(pieces))
    }
    if any(map(WHOLE_NUMBER.fullmatch, distinct)):
        nothing = "label must be a class, got no number ('nan'). Write it, or leave the line out."
        wrong |= {label: nothing for label in distinct if label.lower() == "nan"}
    return wrong


def _first_number(
    table: ListTable,
    column: list[str],
    whole: Mapping[str, int],
    by_key: Mapping[str, int],
    first: int | None,
    paths: Sequence[str],
) -> tuple[int, bool]:
    """The number that labels begin at, and whether that is known: the file of classes says it, or the videos' folders.

    Raises:
        ManifestError: if no video's label is the class of its folder.
    """
    # Folder and label to the first row with them. Not os.path: three times as slow.
    known: dict[tuple[str, str], int] = {}
    for row, (path, label) in enumerate(zip(paths, column, strict=False)):
        known.setdefault((path.rpartition("/")[0].rpartition("/")[2], label), row)
    firsts: dict[int, int] = {}
    for (folder, label), row in known.items():
        if label in whole and class_key(folder) in by_key:
            firsts.setdefault(whole[label] - by_key[class_key(folder)], row)
    if firsts and (first or 0) not in firsts:
        if firsts.keys() == {1} and first is None:
            log.info("%s: labels count from 1, as the folders of the videos show", table.path)
            return 1, True
        row = min(firsts.values())
        number, names = whole[column[row]] - (first or 0), list(by_key)
        said = repr(names[number]) if 0 <= number < len(names) else "no class"
        raise ManifestError(
            f"{table.path}:{table.lines[row]}: label {column[row]!r} is {said} by the classes, but the video lies in "
            f"the folder {os.path.basename(os.path.dirname(paths[row]))!r}, and so it is for all others. Are the "
            "classes in the order of the labels?"
        )
    return first or 0, first is not None or bool(firsts)


def _hint_at_first(path: Path, numbers: set[int], classes: tuple[str, ...]) -> str:
    """What to do if labels count from 1: a hint for an error, or a warning where they may and may not."""
    if min(numbers) == 1 and max(numbers) < len(classes):
        log.warning(
            "%s: no video has the label 0; labels are taken to count from 0, and 1 is %r. If they count from 1, number "
            "the lines of the classes' file from 1 too: `1 NAME`",
            path,
            classes[1],
        )
    are_from_1 = min(numbers) == 1 and max(numbers) == len(classes)
    return " If labels count from 1, number the lines of the classes' file from 1 too: `1 NAME`." if are_from_1 else ""


def _count_classes(path: Path, numbers: set[int], line: int) -> tuple[str, ...]:
    """Classes "0" to the highest number, which a `line` has, for a list with numbers and without given names."""
    highest = max(numbers)
    if highest > 100_000:
        raise ManifestError(
            f"{path}:{line}: labels as numbers must be below 100,000 without classes, got {highest}. Give classes."
        )
    holes = [str(number) for number in range(highest + 1) if number not in numbers]
    if holes:
        log.warning(
            "%s: no video has the label %s; %d classes are assumed, for line %d has the label %d. Correct it, or give "
            "classes to be sure.",
            *(path, some(holes), highest + 1, line, highest),
        )
    return tuple(str(number) for number in range(highest + 1))


def _check_paths(table: ListTable, names: list[str], base: Path, problems: Problems) -> list[str]:
    """Names, those of folders without a slash at the end.

    Paths without a video's extension must be frame folders; if most of them exist, the rest are missing ones.
    """
    rows = not_videos(names)
    folders, wanted = Folders(base), f"{extensions()}, or be a folder of frames that is there"
    others = [row for row in rows if names[row] not in folders]
    for row in others if 2 * len(others) >= len(rows) else ():
        problems.add(table.lines[row], f"path must end in one of {wanted}, got {names[row]!r}. Correct the line.")
    return [name.rstrip("/") for name in names] if rows else names


def _join_all(base: Path, names: list[str]) -> list[str]:
    """`os.path.join` of each, in a quarter of its time."""
    start = os.path.join(base, "")
    return [name if name[:1] == "/" else start + name for name in names]


def _read_numbers(table: ListTable, name: str, kind: type[int] | type[float], problems: Problems) -> np.ndarray | None:
    """A scan's column of numbers above 0, float64 (n,), NaN for none; None without the column."""
    column = table.column(name) if table.is_scan else None
    if column is None:
        return None
    what = "an integer" if kind is int else "a number"
    wrong = {}

    values = {"": math.nan}
    for text in set(column) - {""}:  # many are equal: each is converted once
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if 0 < value < _MAX_NUMBER:
            values[text] = value
        else:
            wrong[text] = f"{name} must be {what} above 0 or empty, got {text!r}. {_AGAIN}"
    problems.add_all(column, table.lines, wrong)
    return np.array([values.get(text, math.nan) for text in column])


def _read_segments(table: ListTable, problems: Problems) -> np.ndarray | None:
    columns = [table.column(name) for name in SEGMENT_COLUMNS]
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


# ---- Kinetics ------------------------------------------------------------------------------------


def read_kinetics(
    table: ListTable, base: Path, classes: tuple[str, ...] | None, index: Mapping[str, Sequence[str]] | None
) -> Listing:
    """All rows of the official csv (label, youtube_id, time_start, time_end, split), whatever their part.

    The files, `<id>_<start>_<end>.mp4`, lie in `base` flat, in class folders (with spaces or underscores), or in class
    folders of a part's folder; they may be of any video format, and have a second extension, as downloaders leave it.
    One in a folder `replacement...` is taken before others of its name, which are corrupted.
    `index` is of `index_by_stem`; None looks for no file. Classes and errors as of `read_list`.
    """
    absent = [name for name in (YOUTUBE_COLUMN, *_KINETICS_COLUMNS) if name not in table.header]
    if absent:
        raise ManifestError(f"{table.path}:1: the header of a Kinetics csv must have {absent}, got {table.header}.")
    problems = Problems(table.path)
    labels, classes = _number_labels(table, classes, problems)
    stems = _kinetics_stems(table, problems)
    problems.check()
    splits = table.column(SPLIT_COLUMN)
    keys = [class_key(name) for name in classes]
    other_classes = set(keys)
    paths, missing = [], np.zeros(len(table), dtype=bool)
    for row, (stem, label) in enumerate(zip(stems, labels.tolist(), strict=True)):
        own = keys[label] if label >= 0 else None
        found = None
        if index is not None:
            found = _choose(index.get(stem, ()), own, other_classes, "" if splits is None else splits[row])
            missing[row] = found is None
        if found is None:
            found = os.path.join(classes[label] if label >= 0 else "", f"{stem}.mp4")
        paths.append(os.path.join(base, found))
    return Listing(
        str(table.path), paths, labels, classes, np.array(table.lines, dtype=np.int32), missing, splits=splits
    )


def _kinetics_stems(table: ListTable, problems: Problems) -> list[str]:
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


def index_by_stem(root: Path) -> dict[str, tuple[str, ...]]:
    """Names without extensions to paths below `root`; lists each directory once and looks up no file."""
    index: dict[str, tuple[str, ...]] = {}
    for below, name, there in walk_videos(root, max_depth=_KINETICS_DEPTH):
        if not there or not name:
            continue
        stem = os.path.splitext(name)[0]
        while is_video(stem):  # a.mp4.mkv
            stem = os.path.splitext(stem)[0]
        index[stem] = (*index.get(stem, ()), os.path.join(below, name))
    return index


def _choose(found: Sequence[str], own: str | None, all_classes: set[str], split: str) -> str | None:
    """Of the files with a row's name a replacement, else the one in its class's folder, else one in no class's."""
    if not found:
        return None
    folders = [os.path.dirname(path) for path in found]
    keys = [class_key(os.path.basename(folder)) for folder in folders]
    ranked = sorted(
        (not _REPLACEMENT.fullmatch(path), key != own, not (split and is_part(folder.split(os.sep)[0], split)), path)
        for path, folder, key in zip(found, folders, keys, strict=True)
        if own is None or key == own or key not in all_classes
    )
    return ranked[0][-1] if ranked else None
