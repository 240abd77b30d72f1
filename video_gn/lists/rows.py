"""Lines to fields: separators and quotes, fast where every line is as it should be, and else line by line."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from video_gn.decoding.frame_folders import Folders, without_count
from video_gn.errors import ManifestError
from video_gn.lists.file_names import VIDEO_EXTENSIONS, is_video, not_videos
from video_gn.lists.scan_columns import SCAN_COLUMNS, SCAN_MARKS

SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", " ": "space"}
PATH_COLUMNS = ("path", "video", "video_path", "filename", "file")
# Of a scan's columns those that a manifest keeps.
KEPT_OF_SCAN = ("num_frames", "fps", "error")
_NUM_PROBLEMS_SHOWN = 5
_NUM_LINES_TRIED = 200  # lines from which the separator of a list without a header is found
# Rows that are lists at a time. Python's garbage collector sets in at 700 of them: more takes three times as long.
_ROWS_AT_A_TIME = 256


class Problems:
    """Collects what is wrong with a file's lines, to name several at once.

    Args:
        path: the file's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, message: str) -> None:
        """Note a problem of a line, counted from 1."""
        self._found.append((line, message))

    def check(self) -> None:
        """Raise ManifestError if there was any."""
        if not self._found:
            return
        shown = [f"{self.path}:{line}: {message}" for line, message in self._found[:_NUM_PROBLEMS_SHOWN]]
        more = len(self._found) - len(shown)
        raise ManifestError("\n".join(shown) + (f"\nand {more} more such lines" if more else ""))


def split_line(line: str, separator: str) -> list[str]:
    """Fields of a line, quotes taken off; csv.Error for a quote that is not closed."""
    if '"' not in line:
        return [field.strip() for field in line.split(separator)]
    # Spaces at a separator come before a quote as well as after it.
    fields = next(csv.reader([line], delimiter=separator, skipinitialspace=separator != " ", strict=True))
    return [field.strip() for field in fields]


def split_all(lines: list[str], separator: str, header: list[str]) -> dict[str, Sequence[str]] | None:
    """Columns of a csv, in a quarter of the time of `split_each`; None where a line is not as it should be."""
    left_out = unused(header)
    columns: dict[str, list[str]] = {name: [] for name in header if name not in left_out}
    num_rows = 0
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        while rows := list(islice(reader, _ROWS_AT_A_TIME)):
            if set(map(len, rows)) != {len(header)}:
                return None
            num_rows += len(rows)
            for name, fields in zip(header, zip(*rows, strict=True), strict=True):
                if name in columns:
                    columns[name].extend(fields)
    except csv.Error:
        return None
    # Fewer rows: a quote that was left open has swallowed lines.
    return dict(columns) if num_rows == len(lines) else None


def split_each(
    path: Path, header: list[str], separator: str, numbers: Sequence[int], lines: list[str]
) -> dict[str, Sequence[str]]:
    """Columns, line by line; what is wrong with any line is raised."""
    problems, rows = Problems(path), []
    for number, line in zip(numbers, lines, strict=True):
        try:
            fields = split_line(line, separator)
        except csv.Error as error:
            problems.add(number, f"the line cannot be read: {error}. Close the quotes.")
            continue
        if separator == " " and len(fields) > len(header) and '"' not in line and header[0] in PATH_COLUMNS:
            fields = [field.strip() for field in line.rsplit(" ", len(header) - 1)]
        if len(fields) != len(header):
            problems.add(
                number,
                f"a line must have {len(header)} fields like the header, got {len(fields)} in {line!r}. "
                f"Quote fields that hold a {SEPARATORS[separator]}.",
            )
            continue
        rows.append(fields)
    problems.check()
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def _path_and_label(line: str, separator: str | None) -> list[str]:
    """[path, label], or [path] where separator is None; csv.Error or ValueError where the line has other fields."""
    if separator is None:
        return [line if '"' not in line else split_line(line, "\t")[0]]
    if '"' in line:
        path, label = (field for field in split_line(line, separator) if field or separator != " ")
    else:
        path, found, label = line.rpartition(separator)
        if not found:
            raise ValueError("no separator")
    return [path.strip(), label.strip()]


def fits(line: str, separator: str | None, folders: Folders | None = None) -> bool:
    """Whether a line is a video's path and a label, or a path alone where separator is None.

    Args:
        line: of the list.
        separator: of its fields.
        folders: makes a folder's path a video's too.
    """
    try:
        fields = _path_and_label(line, separator)
    except (csv.Error, ValueError):
        return False
    is_found = is_video(fields[0]) or (folders is not None and bool(folders.readings(fields[0], separator)))
    return is_found and bool(fields[-1])


def find_separator(lines: list[str], folders: Folders) -> str | None:
    """The separator with which most lines are a video's path and a label; None where most are a path alone."""
    lines = lines[:_NUM_LINES_TRIED]
    candidates: list[str | None] = [None, *SEPARATORS]
    for where in (None, folders):  # folders are looked for where no line names a file
        counts = [sum(fits(line, candidate, where) for line in lines) for candidate in candidates]
        if max(counts):
            return candidates[counts.index(max(counts))]
    return next((separator for separator in SEPARATORS if separator in lines[0]), None)


def part_all(lines: list[str], separator: str) -> tuple[list[str], list[str]] | None:
    """Paths and labels, faster than `part_each`; None where a line has quotes or is not as it should be."""
    if any('"' in line for line in lines):
        return None
    parted = [line.rpartition(separator) for line in lines]
    paths, labels = [path.strip() for path, _, _ in parted], [label.strip() for _, _, label in parted]
    return None if not all(labels) or not_videos(paths) else (paths, labels)


def part_each(
    path: Path, separator: str | None, numbers: Sequence[int], lines: list[str], folders: Folders
) -> list[list[str]]:
    """Columns of a list without a header, line by line; what is wrong with any line is raised."""
    wanted = "path" if separator is None else f"path{separator}label"
    problems, rows = Problems(path), []
    for number, line in zip(numbers, lines, strict=True):
        try:
            fields = _path_and_label(line, separator)
        except csv.Error as error:
            problems.add(number, f"the line cannot be read: {error}. Close the quotes.")
            continue
        except ValueError:
            problems.add(number, f"a line must be {wanted!r} as most lines are, got {line!r}. Correct the line.")
            continue
        rows.append((number, line, fields))
    others = [row for row in rows if not is_video(row[2][0])]
    readings = {number: folders.readings(fields[0], separator) for number, _, fields in others}
    # Where most of them are folders that are there, the rest are folders that are missing.
    are_folders = 2 * sum(bool(found) for found in readings.values()) > len(others)
    for number, line, fields in rows:
        found = readings.get(number)
        if found is None or len(found) == 1:
            fields[:1] = found or fields[:1]
        elif found:
            problems.add(
                number,
                f"a folder must be named in one way, got {line!r}, where {found[0]!r} and {found[1]!r} are "
                "folders. Write a header `path,label` and the first or the second.",
            )
        elif are_folders:
            fields[0] = without_count(fields[0], separator) or fields[0]
        else:
            problems.add(number, _not_a_video(fields[0], line, wanted))
            continue
        if not fields[-1]:
            problems.add(number, f"a line must end in a label, got {line!r}. Write {wanted!r}.")
    problems.check()
    return [list(column) for column in zip(*(fields for *_, fields in rows), strict=True)]


def _not_a_video(name: str, line: str, wanted: str) -> str:
    if re.fullmatch(r".*\S[ \t,]+\d+[ \t,]+\d+", line):
        return f"a line `folder num_frames label` must name a folder that is there, got {line!r}. Is its root right?"
    advice = "Write a header `path,label,...` where a list has more columns, or labels with spaces."
    return f"a line must be {wanted!r} with a path that ends in {extensions()}, got {name!r} for it. {advice}"


def extensions() -> str:
    """The extensions of videos, for messages."""
    return " ".join(sorted(VIDEO_EXTENSIONS))


def unused(header: Sequence[str]) -> set[str]:
    """Columns of a scan that a manifest does not keep."""
    return set(SCAN_COLUMNS) - set(KEPT_OF_SCAN) if set(header) >= SCAN_MARKS else set()
