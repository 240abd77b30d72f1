"""Text files to rows: encoding, header, separator, quotes. What the columns mean is `manifest`'s business.

Every line is looked at before anything is raised, and the first few that cannot be read are named.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_gn.data._files import VIDEO_EXTENSIONS, is_video
from video_gn.errors import ManifestError

SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", " ": "space"}
PATH_COLUMNS = ("path", "video", "video_path", "filename", "file")
LABEL_COLUMNS = ("label", "class")
YOUTUBE_COLUMN = "youtube_id"
LIST_SUFFIXES = ("", ".csv", ".list", ".lst", ".ssv", ".tsv", ".txt")
_NUM_PROBLEMS_SHOWN = 5
_NUM_LINES_TRIED = 200  # lines from which the separator of a list without a header is found


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


@dataclass
class Table:
    """Rows of a file.

    Args:
        path: the file's.
        header: names of the columns in lower case: the header's own, or path and label.
        rows: as many fields as the header has.
        lines: 1-based line of each row.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, *names: str) -> list[str] | None:
        """The column of the first of these names that the header has, or None."""
        for name in names:
            if name in self.header:
                place = self.header.index(name)
                return [row[place] for row in self.rows]
        return None


def read_lines(path: Path) -> list[str]:
    """All lines of a UTF-8 file, with or without a byte order mark, with either line end, not stripped otherwise.

    Raises:
        ManifestError: where the file cannot be read, is not UTF-8 or is no text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: the file cannot be read: {error.strerror}") from error
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
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_table(path: Path, *, separator: str | None = None) -> Table:
    """Read a list of videos: with a header, or `path label`, or `path` alone.

    Without a header the last field is the label, and the path is all that stands before it, spaces and
    separators included. Lines that are blank or begin with "# " are left out.

    Args:
        path: the file.
        separator: tab, comma, semicolon or space; None finds it.

    Raises:
        ManifestError: for a file or line that cannot be read.
        ValueError: for an unknown separator.
    """
    numbered = _numbered_lines(path, separator)
    header_separator, header = _find_header(numbered[0][1], [separator] if separator else list(SEPARATORS))
    if header:
        return _with_header(path, header, header_separator, numbered)
    return _without_header(path, separator, numbered)


def read_header(path: Path, *, separator: str | None = None) -> list[str]:
    """Names of a list's columns, in lower case; none where it has no header; as `read_table`."""
    return _find_header(_numbered_lines(path, separator)[0][1], [separator] if separator else list(SEPARATORS))[1]


def _numbered_lines(path: Path, separator: str | None) -> list[tuple[int, str]]:
    """(number, line) of the lines that say something; at least one."""
    if separator is not None and separator not in SEPARATORS:
        raise ValueError(f"separator must be one of {list(SEPARATORS)}, got {separator!r}. None finds it.")
    if path.suffix.lower() not in LIST_SUFFIXES:
        what = "a video" if is_video(path.name) else "a file of another kind"
        raise ManifestError(
            f"{path}: a list must end in one of {[s for s in LIST_SUFFIXES if s]}, got {what}. "
            "Give a list, or a folder with a folder for each class."
        )
    numbered = [(number, line.strip(" ")) for number, line in enumerate(read_lines(path), start=1)]
    numbered = [(n, line) for n, line in numbered if line.strip() and line.strip() != "#" and not line.startswith("# ")]
    if not numbered:
        raise ManifestError(f"{path}: a list must have at least one line, got none. Is the file complete?")
    return numbered


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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_bytes(data)
    partial.replace(path)


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


def _split(line: str, separator: str) -> list[str]:
    """Fields of a line, quotes taken off; csv.Error for a quote that is not closed."""
    if '"' not in line:
        return [field.strip() for field in line.split(separator)]
    # Spaces at a separator come before a quote as well as after it.
    fields = next(csv.reader([line], delimiter=separator, skipinitialspace=separator != " ", strict=True))
    return [field.strip() for field in fields]


def _find_header(line: str, separators: list[str]) -> tuple[str, list[str]]:
    """Separator and names of a header; no names where the line is none."""
    for separator in separators:
        try:
            fields = [field.lower() for field in _split(line, separator)]
        except csv.Error:
            continue
        if any(is_video(field) for field in fields):
            continue
        known = {YOUTUBE_COLUMN, *PATH_COLUMNS} & set(fields)
        if known and (len(fields) > 1 or fields[0] in (PATH_COLUMNS[0], YOUTUBE_COLUMN)):
            return separator, fields
    return "", []


def _with_header(path: Path, header: list[str], separator: str, numbered: list[tuple[int, str]]) -> Table:
    first_line = numbered[0][0]
    for place, name in enumerate(header):
        if not name or name in header[:place]:
            raise ManifestError(
                f"{path}:{first_line}: names of columns must be there and differ, got {header}. Correct the header."
            )
    problems, rows, lines = Problems(path), [], []
    for number, line in numbered[1:]:
        try:
            fields = _split(line, separator)
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
        lines.append(number)
    problems.check()
    if not rows:
        raise ManifestError(f"{path}: a list must have at least one line below its header, got none.")
    return Table(path, header, rows, lines)


def _path_and_label(line: str, separator: str | None) -> list[str]:
    """[path, label], or [path] where separator is None; csv.Error or ValueError where the line has other fields."""
    if separator is None:
        return [line if '"' not in line else _split(line, "\t")[0]]
    if '"' in line:
        path, label = (field for field in _split(line, separator) if field or separator != " ")
    else:
        path, found, label = line.rpartition(separator)
        if not found:
            raise ValueError("no separator")
    return [path.strip(), label.strip()]


def _fits(line: str, separator: str | None) -> bool:
    try:
        fields = _path_and_label(line, separator)
    except (csv.Error, ValueError):
        return False
    return is_video(fields[0]) and bool(fields[-1])


def _find_separator(lines: list[str]) -> str | None:
    """The separator with which most lines are a video's path and a label; None where most are a path alone."""
    candidates: list[str | None] = [None, *SEPARATORS]
    fits = [sum(_fits(line, candidate) for line in lines) for candidate in candidates]
    if max(fits):
        return candidates[fits.index(max(fits))]
    return next((separator for separator in SEPARATORS if separator in lines[0]), None)


def _without_header(path: Path, separator: str | None, numbered: list[tuple[int, str]]) -> Table:
    if separator is None:
        separator = _find_separator([line for _, line in numbered[:_NUM_LINES_TRIED]])
        # A list of paths alone may have been given its separator all the same.
    elif not any(_fits(line, separator) for _, line in numbered) and all(_fits(line, None) for _, line in numbered):
        separator = None
    wanted = "path" if separator is None else f"path{separator}label"
    problems, rows = Problems(path), []
    for number, line in numbered:
        try:
            fields = _path_and_label(line, separator)
        except csv.Error as error:
            problems.add(number, f"the line cannot be read: {error}. Close the quotes.")
            continue
        except ValueError:
            problems.add(number, f"a line must be {wanted!r} as most lines are, got {line!r}. Correct the line.")
            continue
        if not is_video(fields[0]):
            problems.add(number, _not_a_video(fields[0], line, wanted))
        elif not fields[-1]:
            problems.add(number, f"a line must end in a label, got {line!r}. Write {wanted!r}.")
        rows.append(fields)
    problems.check()
    return Table(path, ["path"] if separator is None else ["path", "label"], rows, [number for number, _ in numbered])


def _not_a_video(name: str, line: str, wanted: str) -> str:
    if re.fullmatch(r".*\S[ \t,]+\d+[ \t,]+\d+", line):
        return f"folders of pictures (`folder frames label`) cannot be read, got {line!r}. List video files."
    advice = "Write a header `path,label,...` where a list has more columns, or labels with spaces."
    return f"a line must be {wanted!r} with a path that ends in {extensions()}, got {name!r} for it. {advice}"


def some(names: Sequence[str], number: int = 5) -> str:
    """The first few of some names, for messages."""
    shown = ", ".join(repr(name) for name in names[:number])
    return shown if len(names) <= number else f"{shown}, ..."


def extensions() -> str:
    """The extensions of videos, for messages."""
    return " ".join(sorted(VIDEO_EXTENSIONS))
