"""Text files to rows: encoding, header, separator, quotes. What the columns mean is `manifest`'s business.

Every line is looked at before anything is raised, and the first few that cannot be read are named.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_gn.decoding.frame_folders import Folders
from video_gn.errors import ManifestError
from video_gn.files import whole_file
from video_gn.lists.file_names import is_video
from video_gn.lists.parquet import read_parquet, read_parquet_header
from video_gn.lists.rows import (
    PATH_COLUMNS,
    SEPARATORS,
    Problems,
    find_separator,
    fits,
    part_all,
    part_each,
    split_all,
    split_each,
    split_line,
    unused,
)
from video_gn.lists.scan_columns import SCAN_MARKS

LABEL_COLUMNS = ("label", "class")
YOUTUBE_COLUMN = "youtube_id"
PARQUET_SUFFIX = ".parquet"
LIST_SUFFIXES = ("", ".csv", ".list", ".lst", PARQUET_SUFFIX, ".ssv", ".tsv", ".txt")
_HEAD_BYTES = 1 << 16  # a header is looked for in these, before the whole file is read


@dataclass
class Table:
    """A file's columns.

    Args:
        path: the file's.
        header: names of the columns in lower case: the header's own, or path and label.
        columns: fields by name, spaces at their ends included; of a scan's columns some are left out.
        lines: 1-based line of each row; of parquet its row.
        has_header: whether the names are the file's own; otherwise its paths are known to be videos, or folders.
    """

    path: Path
    header: list[str]
    columns: dict[str, Sequence[str]]
    lines: Sequence[int]
    has_header: bool = True

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, *names: str) -> list[str] | None:
        """The column of the first of these names that the header has, or None."""
        for name in names:
            if name in self.columns:
                return list(map(str.strip, self.columns[name]))
        return None

    @property
    def is_scan(self) -> bool:
        """Whether a scan wrote it."""
        return set(self.header) >= SCAN_MARKS


def read_lines(path: Path) -> list[str]:
    """All lines of a UTF-8 file, with or without a byte order mark, with either line end, not stripped otherwise.

    Raises:
        ManifestError: where the file cannot be read, is not UTF-8 or is no text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: the file cannot be read: {error.strerror}") from error
    return _decode(path, data)


def _decode(path: Path, data: bytes) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{path}:{line}: the text must be UTF-8, got the byte 0x{data[error.start]:02x}. Save the file as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ManifestError(f"{path}:{line}: the file must be text, got a zero byte. Is it really a list?")
    # Not splitlines(): it also breaks at characters that file names may hold.
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in lines] if "\r" in text else lines


def read_table(path: Path, *, separator: str | None = None, root: Path | None = None) -> Table:
    """Read a list of videos: with a header, or `path label`, or `path` alone, or `folder num_frames label`.

    Without a header the last field is the label, and the path is all that stands before it, spaces and
    separators included; a whole number at its end is left out where a folder has the name before it.
    Lines that are blank or begin with "# " are left out.

    Args:
        path: the file.
        separator: tab, comma, semicolon or space; None finds it.
        root: where relative paths of folders start; None is the file's own directory.

    Raises:
        ManifestError: for a file or line that cannot be read.
        ValueError: for an unknown separator.
    """
    _check_list(path, separator)
    if path.suffix.lower() == PARQUET_SUFFIX:
        return _from_parquet(path)
    numbers, lines = _telling_lines(read_lines(path))
    if not lines:
        raise ManifestError(f"{path}: a list must have at least one line, got none. Is the file complete?")
    header_separator, header = _find_header(lines[0], [separator] if separator else list(SEPARATORS))
    if header:
        return _with_header(path, header, header_separator, numbers, lines)
    return _without_header(path, separator, numbers, lines, Folders(path.parent if root is None else root))


def read_header(path: Path, *, separator: str | None = None) -> list[str]:
    """Names of a list's columns, in lower case; none where it has no header; as `read_table`."""
    _check_list(path, separator)
    if path.suffix.lower() == PARQUET_SUFFIX:
        return read_parquet_header(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ManifestError(f"{path}: the file cannot be read: {error.strerror}") from error
    _, lines = _telling_lines(_decode(path, head[: head.rfind(b"\n") + 1]))
    if not lines:
        _, lines = _telling_lines(read_lines(path))
    if not lines:
        raise ManifestError(f"{path}: a list must have at least one line, got none. Is the file complete?")
    return _find_header(lines[0], [separator] if separator else list(SEPARATORS))[1]


def _check_list(path: Path, separator: str | None) -> None:
    if separator is not None and separator not in SEPARATORS:
        raise ValueError(f"separator must be one of {list(SEPARATORS)}, got {separator!r}. None finds it.")
    if path.suffix.lower() not in LIST_SUFFIXES:
        what = "a video" if is_video(path.name) else "a file of another kind"
        raise ManifestError(
            f"{path}: a list must end in one of {[s for s in LIST_SUFFIXES if s]}, got {what}. "
            "Give a list, or a folder with a folder for each class."
        )


def _telling_lines(lines: list[str]) -> tuple[Sequence[int], list[str]]:
    """Numbers of the lines that say something, and these lines without spaces at their ends."""
    lines = [line.strip(" ") for line in lines]
    # Few lines are blank or comments: only those that begin like one are looked at more closely.
    silent = {
        place
        for place, line in enumerate(lines)
        if (not line or line[0] == "#" or line[0].isspace())
        and (not line.strip() or line.strip() == "#" or line.startswith("# "))
    }
    if silent == {len(lines) - 1}:
        return range(1, len(lines)), lines[:-1]
    places = [place for place in range(len(lines)) if place not in silent]
    return [place + 1 for place in places], [lines[place] for place in places]


def _from_parquet(path: Path) -> Table:
    columns = read_parquet(path, skip=unused)
    num_rows = len(next(iter(columns.values()), ()))
    if not num_rows:
        raise ManifestError(f"{path}: a list must have at least one row, got none. Is the file complete?")
    return Table(path, list(columns), dict(columns), range(1, num_rows + 1))


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names in the order of their numbers.

    Args:
        path: text with one name per line; or json, a list of names or a mapping of names to numbers.

    Raises:
        ManifestError: where it cannot be read, has no name, an empty one, or one twice.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return check_classes(_json_classes(path), origin=str(path))
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    return check_classes([line.strip() for line in lines], origin=str(path))


def write_table(path: str | Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a csv, whole or not at all.

    Raises:
        ManifestError: for a field that is no valid text, as a file name may be.
    """
    path = Path(path)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _write_text(path, text.getvalue())


def write_classes(path: str | os.PathLike[str], classes: Iterable[str]) -> None:
    """Write class names, one per line; errors are `write_table`'s."""
    _write_text(Path(path), "".join(f"{name}\n" for name in classes))


def _write_text(path: Path, text: str) -> None:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        line = text[text.rfind("\n", 0, error.start) + 1 :].split("\n", 1)[0]
        raise ManifestError(f"{path}: a field must be text, got {line!r}. Rename the file.") from error
    with whole_file(path, "wb") as file:
        file.write(data)


def check_classes(names: list[str], *, origin: str) -> tuple[str, ...]:
    """Refuse a list of class names that is empty, or has an empty name or one twice; `origin` is for the message."""
    seen: dict[str, int] = {}
    problems = Problems(origin)
    for number, name in enumerate(names, start=1):
        if not isinstance(name, str) or not name:
            problems.add(
                number, f"a class must be a name, got {name!r}. Write one class per line, without blank lines."
            )
        elif (first := seen.setdefault(class_key(name), number)) != number:
            problems.add(number, f"class {name!r} must stand once, but line {first} has it too. Remove one of the two.")
    problems.check()
    if not names:
        raise ManifestError(f"{origin}: classes must have at least one name, got none. Write one class per line.")
    return tuple(names)


def class_key(name: str) -> str:
    """What two writings of a class have in common: copies of Kinetics differ in spaces and underscores."""
    return name.replace("_", " ")


def _json_classes(path: Path) -> list[str]:
    try:
        content: Any = json.loads("\n".join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}: the json cannot be read: {error.msg}") from error
    if isinstance(content, dict):
        if not all(type(number) is int for number in content.values()):
            content = None
        elif sorted(content.values()) != list(range(len(content))):
            raise ManifestError(
                f"{path}: numbers of classes must be 0 to {len(content) - 1}, each once. Correct the file."
            )
        else:
            # pytorchvideo's file of Kinetics names has quotes inside the names.
            content = [name.strip('"') for name in sorted(content, key=content.__getitem__)]
    if not isinstance(content, list):
        raise ManifestError(f"{path}: classes must be a list of names or a mapping of names to numbers.")
    return content


def _find_header(line: str, separators: list[str]) -> tuple[str, list[str]]:
    """Separator and names of a header; no names where the line is none."""
    for separator in separators:
        try:
            fields = [field.lower() for field in split_line(line, separator)]
        except csv.Error:
            continue
        if any(is_video(field) for field in fields):
            continue
        known = {YOUTUBE_COLUMN, *PATH_COLUMNS} & set(fields)
        if known and (len(fields) > 1 or fields[0] in (PATH_COLUMNS[0], YOUTUBE_COLUMN)):
            return separator, fields
    return "", []


def _with_header(path: Path, header: list[str], separator: str, numbers: Sequence[int], lines: list[str]) -> Table:
    for place, name in enumerate(header):
        if not name or name in header[:place]:
            raise ManifestError(
                f"{path}:{numbers[0]}: names of columns must be there and differ, got {header}. Correct the header."
            )
    numbers, lines = numbers[1:], lines[1:]
    if not lines:
        raise ManifestError(f"{path}: a list must have at least one line below its header, got none.")
    # Spaces at a list's separator need rules of their own, and whatever is wrong is named line by line.
    columns = split_all(lines, separator, header) if separator != " " else None
    if columns is None:
        columns = split_each(path, header, separator, numbers, lines)
    return Table(path, header, columns, numbers)


def _without_header(
    path: Path, separator: str | None, numbers: Sequence[int], lines: list[str], folders: Folders
) -> Table:
    if separator is None:
        separator = find_separator(lines, folders)
        # A list of paths alone may have been given its separator all the same.
    elif not any(fits(line, separator, folders) for line in lines) and all(fits(line, None, folders) for line in lines):
        separator = None
    columns: Sequence[Sequence[str]] | None = None if separator is None else part_all(lines, separator)
    if columns is None:
        columns = part_each(path, separator, numbers, lines, folders)
    header = ["path"] if separator is None else ["path", "label"]
    return Table(path, header, dict(zip(header, columns, strict=True)), numbers, has_header=False)


def some(names: Sequence[str], number: int = 5) -> str:
    """The first few of some names, for messages."""
    shown = ", ".join(repr(name) for name in names[:number])
    return shown if len(names) <= number else f"{shown}, ..."
