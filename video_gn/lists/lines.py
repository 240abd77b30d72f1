"""List files to rows: encoding, header, separator and quotes of csv and text; parquet as the same table.

Every line is looked at before an error is raised, which then names the first few bad ones.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from video_gn.damage import read_text_bytes
from video_gn.decoding.frame_folders import Folders, without_count
from video_gn.errors import ManifestError
from video_gn.files import whole_file
from video_gn.lists.file_names import VIDEO_EXTENSIONS, is_video, not_videos
from video_gn.lists.parquet import read_parquet
from video_gn.lists.scan_columns import SCAN_COLUMNS, SCAN_MARKS

SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", " ": "space"}
PATH_COLUMNS = ("path", "video", "video_path", "filename", "file", "file_name")
LABEL_COLUMNS = ("label", "class")
YOUTUBE_COLUMN = "youtube_id"
PARQUET_SUFFIX = ".parquet"
JSON_SUFFIXES = (".json", ".jsonl")
LIST_SUFFIXES = ("", ".csv", *JSON_SUFFIXES, ".list", ".lst", PARQUET_SUFFIX, ".ssv", ".tsv", ".txt")
# mmaction2's lists with several labels: `path label label`, `folder num_frames label label`
_SEVERAL_LABELS = re.compile(r"(?P<path>.*?\S)[ \t,;]+[0-9]+[ \t,;]+[0-9]+(?P<more>(?:[ \t,;]+[0-9]+)*)")
# Columns of a scan that a manifest keeps.
_KEPT_OF_SCAN = ("num_frames", "fps", "error")
_NUM_PROBLEMS_SHOWN = 5
_NUM_LINES_TRIED = 200  # lines that the separator of a list without a header is found from
# Rows that are lists at a time. Python's garbage collector starts at 700 of them: more takes three times as long.
_ROWS_AT_A_TIME = 256


class Problems:
    """Problems of a file's lines, collected to name several in one error."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, message: str) -> None:
        """Note a problem of a line, counted from 1."""
        self._found.append((line, message))

    def add_all(self, fields: Sequence[str], lines: Sequence[int], wrong: Mapping[str, str]) -> None:
        """Note the problem of each wrong field: `wrong` has their messages."""
        if wrong:
            self._found += [(line, wrong[field]) for field, line in zip(fields, lines, strict=True) if field in wrong]

    def check(self) -> None:
        """Raise ManifestError if there was any."""
        if not self._found:
            return
        shown = [f"{self.path}:{line}: {message}" for line, message in self._found[:_NUM_PROBLEMS_SHOWN]]
        more = len(self._found) - len(shown)
        raise ManifestError("\n".join(shown) + (f"\nand {more} more such lines" if more else ""))


def some(names: Sequence[object], number: int = 5) -> str:
    """The first few of some names, for messages."""
    shown = ", ".join(repr(name) for name in names[:number])
    return shown if len(names) <= number else f"{shown}, ..."


def extensions() -> str:
    """The extensions of videos, for messages."""
    return " ".join(sorted(VIDEO_EXTENSIONS))


@dataclass
class ListTable:
    """A list's columns: fields by name, spaces at their ends included."""

    path: Path
    header: list[str]  # names of columns in lower case: the header's own, or path and label
    columns: dict[str, Sequence[str]]  # without a scan's columns that a manifest does not keep
    lines: Sequence[int]  # 1-based line of each row; row of a parquet file
    has_header: bool = True  # without one, paths are already checked
    classes: tuple[str, ...] | None = None  # names by number from 0, where the list comes with them
    are_names: bool = False  # paths leave open the ending and the folder, see `video_gn.lists.downloads.find_files`

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
        """Whether a scan wrote the list."""
        return set(self.header) >= SCAN_MARKS


# ---- files ---------------------------------------------------------------------------------------


def check_suffix(path: Path) -> None:
    """Raise ManifestError for a file that cannot be a list by its name."""
    if path.suffix.lower() not in LIST_SUFFIXES:
        what = "a video" if is_video(path.name) else "a file of another kind"
        raise ManifestError(
            f"{path}: a list must end in one of {[s for s in LIST_SUFFIXES if s]}, got {what}. "
            "Give a list, or a folder with a folder for each class."
        )


def table_of_parquet(path: Path) -> ListTable:
    """Columns of a parquet file; ManifestError if it cannot be read or is empty."""
    columns = read_parquet(path, skip=_unused)
    num_rows = len(next(iter(columns.values()), ()))
    if not num_rows:
        raise ManifestError(f"{path}: a list must have at least one row, got none. Is the file complete?")
    return ListTable(path, list(columns), dict(columns), range(1, num_rows + 1))


def read_text(path: Path) -> tuple[Sequence[int], list[str]]:
    """A list's lines that are neither blank nor comments, which begin with "# ", and their numbers from 1.

    Raises:
        ManifestError: for a file that cannot be read or has no such line.
    """
    numbers, lines = _without_comments(read_lines(path))
    if not lines:
        raise ManifestError(f"{path}: a list must have at least one line, got none. Is the file complete?")
    return numbers, lines


def table_of_text(
    path: Path, numbers: Sequence[int], lines: list[str], *, separator: str | None = None, root: Path | None = None
) -> ListTable:
    """Columns of a list of videos: with a header, or `path label`, or `path` alone, or `folder num_frames label`.

    Without a header the last field is the label, and all before it is the path, with its spaces and separators. A
    whole number at the path's end is left out if a folder has the name before it.

    Args:
        path: the file.
        numbers: numbers of its lines, as of `read_text`.
        lines: its lines.
        separator: tab, comma, semicolon or space; None finds it.
        root: directory that relative paths of folders start from; None is the file's own.

    Raises:
        ManifestError: for a line that cannot be read.
    """
    header_separator, header = find_header(lines[0], separator)
    if header:
        return _with_header(path, header, header_separator, numbers, lines)
    return _without_header(path, separator, numbers, lines, Folders(path.parent if root is None else root))


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, with or without a byte order mark, with any line end, not stripped otherwise.

    Raises:
        ManifestError: for a file that cannot be read, is not UTF-8 or is not text.
    """
    try:
        data = read_text_bytes(path)
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
    lines = text.split("\n" if "\n" in text else "\r")  # old Mac files have "\r" alone
    return [line.removesuffix("\r") for line in lines] if "\r" in text else lines


def write_table(path: str | Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a csv, whole or not at all.

    Raises:
        ManifestError: for a field that is not valid text, as a file name may be.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(Path(path), text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, whole or not at all; errors as `write_table`."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        line = text[text.rfind("\n", 0, error.start) + 1 :].split("\n", 1)[0]
        raise ManifestError(f"{path}: a field must be text, got {line!r}. Rename the file.") from error
    with whole_file(path, "wb") as file:
        file.write(data)


def _without_comments(lines: list[str]) -> tuple[Sequence[int], list[str]]:
    """Numbers of the lines that are neither blank nor comments, and these lines without spaces at their ends."""
    lines = [line.strip(" ") for line in lines]
    kept = [n for n, line in enumerate(lines) if line.strip() not in ("", "#") and not line.startswith("# ")]
    return [place + 1 for place in kept], [lines[place] for place in kept]


def _unused(header: Sequence[str]) -> set[str]:
    """Columns of a scan that a manifest does not keep."""
    return set(SCAN_COLUMNS) - set(_KEPT_OF_SCAN) if set(header) >= SCAN_MARKS else set()


# ---- with a header -------------------------------------------------------------------------------


def find_header(line: str, separator: str | None = None) -> tuple[str, list[str]]:
    """Separator and names of a header; no names if the line is not one."""
    for candidate in [separator] if separator else SEPARATORS:
        try:
            fields = [field.strip().lower() for field in split_line(line, candidate)]
        except csv.Error:
            continue
        if any(is_video(field) for field in fields):
            continue
        known = {YOUTUBE_COLUMN, *PATH_COLUMNS} & set(fields)
        if known and (len(fields) > 1 or fields[0] in (PATH_COLUMNS[0], YOUTUBE_COLUMN)):
            return candidate, fields
    return "", []


def split_line(line: str, separator: str) -> list[str]:
    """Fields of a line without their quotes; csv.Error for a quote that is not closed."""
    if '"' not in line:
        return line.split(separator)
    # Spaces at a separator come before a quote as well as after it.
    return next(csv.reader([line], delimiter=separator, skipinitialspace=separator != " ", strict=True))


def _with_header(path: Path, header: list[str], separator: str, numbers: Sequence[int], lines: list[str]) -> ListTable:
    for place, name in enumerate(header):
        if not name or name in header[:place]:
            raise ManifestError(
                f"{path}:{numbers[0]}: names of columns must be there and differ, got {header}. Correct the header."
            )
    numbers, lines = numbers[1:], lines[1:]
    if not lines:
        raise ManifestError(f"{path}: a list must have at least one line below its header, got none.")
    problems, unused = Problems(path), _unused(header)
    columns: dict[str, list[str]] = {name: [] for name in header if name not in unused}
    for first in range(0, len(lines), _ROWS_AT_A_TIME):
        part = slice(first, first + _ROWS_AT_A_TIME)
        rows = []
        for number, line in zip(numbers[part], lines[part], strict=True):
            try:
                rows.append(_split_row(line, separator, header))
            except csv.Error as error:
                problems.add(number, f"the line cannot be read: {error}. Close the quotes.")
            except ValueError as error:
                problems.add(number, str(error))
        for name, fields in zip(header, zip(*rows, strict=True), strict=False):
            if name in columns:
                columns[name].extend(fields)
    problems.check()
    return ListTable(path, header, dict(columns), numbers)


def _split_row(line: str, separator: str, header: list[str]) -> list[str]:
    """Fields of a line; csv.Error, or ValueError for another number of fields than the header's."""
    fields = split_line(line, separator)
    if separator == " " and len(fields) > len(header) and '"' not in line and header[0] in PATH_COLUMNS:
        fields = line.rsplit(" ", len(header) - 1)
    if len(fields) != len(header):
        raise ValueError(
            f"a line must have {len(header)} fields like the header, got {len(fields)} in {line!r}. "
            f"Quote fields that hold a {SEPARATORS[separator]}."
        )
    return fields


# ---- without a header ----------------------------------------------------------------------------


def fits(line: str, separator: str | None, folders: Folders | None = None) -> bool:
    """Whether a line is a path and a label, or a path alone if separator is None: a video's, or one of `folders`."""
    try:
        path, label = _path_and_label(line, separator)
    except (csv.Error, ValueError):
        return False
    is_found = is_video(path) or (folders is not None and bool(folders.readings(path, separator)))
    return is_found and bool(label or separator is None)


def _path_and_label(line: str, separator: str | None) -> tuple[str, str]:
    """Path and label, "" if separator is None; csv.Error or ValueError for a line with other fields."""
    if separator is None:
        return line if '"' not in line else split_line(line, "\t")[0].strip(), ""
    if '"' in line:
        path, label = (field for field in split_line(line, separator) if field.strip() or separator != " ")
    else:
        path, found, label = line.rpartition(separator)
        if not found:
            raise ValueError("no separator")
    return path.strip(), label.strip()


def _find_separator(lines: list[str], folders: Folders) -> str | None:
    """The separator with which most lines are a video's path and a label; None if most are a path alone."""
    lines = lines[:_NUM_LINES_TRIED]
    candidates: list[str | None] = [None, *SEPARATORS]
    for where in (None, folders):  # folders are looked for only if no line names a file
        counts = [sum(fits(line, candidate, where) for line in lines) for candidate in candidates]
        if max(counts):
            return candidates[counts.index(max(counts))]
    return next((separator for separator in SEPARATORS if separator in lines[0]), None)


def _without_header(
    path: Path, separator: str | None, numbers: Sequence[int], lines: list[str], folders: Folders
) -> ListTable:
    if separator is None:
        separator = _find_separator(lines, folders)
        # A list of paths alone may come with a separator all the same.
    elif not any(fits(line, separator, folders) for line in lines) and all(fits(line, None, folders) for line in lines):
        separator = None
    wanted = _wanted(separator)
    problems = Problems(path)
    paths: list[str] = []
    labels: list[str] = []
    bad: dict[int, str] = {}  # messages by place
    for place, line in enumerate(lines):
        name = label = ""
        try:
            name, label = _path_and_label(line, separator)
        except csv.Error as error:
            bad[place] = f"the line cannot be read: {error}. Close the quotes."
        except ValueError:
            bad[place] = f"a line must be {wanted!r} as most lines are, got {line!r}. Correct the line."
        paths.append(name)
        labels.append(label)
    others = [place for place in not_videos(paths) if place not in bad]
    bad |= _name_folders(others, paths, lines, separator, folders)
    if separator is not None and "" in labels:
        for place, (line, label) in enumerate(zip(lines, labels, strict=True)):
            if not label:
                bad.setdefault(place, f"a line must end in a label, got {line!r}. Write {wanted!r}.")
    for place, message in bad.items():
        problems.add(numbers[place], message)
    problems.check()
    columns: dict[str, Sequence[str]] = {"path": paths} if separator is None else {"path": paths, "label": labels}
    return ListTable(path, list(columns), columns, numbers, has_header=False)


def _wanted(separator: str | None) -> str:
    return "path" if separator is None else f"path{separator}label"


def _name_folders(
    places: Sequence[int], paths: list[str], lines: Sequence[str], separator: str | None, folders: Folders
) -> dict[int, str]:
    """Reduce paths that do not end like a video to the folders that they name; messages for those that name none."""
    bad: dict[int, str] = {}
    readings = {place: folders.readings(paths[place], separator) for place in places}
    # If most of them are folders that exist, the rest are missing folders.
    are_folders = 2 * sum(bool(found) for found in readings.values()) > len(places)
    for place, found in readings.items():
        line, name = lines[place], paths[place]
        if len(found) == 1:
            paths[place] = found[0]
        elif found:
            bad[place] = (
                f"a folder must be named in one way, got {line!r}, where {found[0]!r} and {found[1]!r} are folders. "
                "Write a header `path,label` and the first or the second."
            )
        elif are_folders:
            paths[place] = without_count(name, separator) or name
        elif (several := _SEVERAL_LABELS.fullmatch(line)) and (several["more"] or is_video(several["path"])):
            bad[place] = f"a video must have one label, got several in {line!r}"
            if not is_video(several["path"]):
                bad[place] += ", or the number of a first frame, as in `folder start num_frames label`"
            bad[place] += ". Such lists cannot be used: keep one label, or write `folder num_frames label`."
        elif re.fullmatch(r".*\S[ \t,]+\d+[ \t,]+\d+", line):
            bad[place] = (
                f"a line `folder num_frames label` must name a folder that is there, got {line!r}. Is its root right?"
            )
        else:
            bad[place] = (
                f"a line must be {_wanted(separator)!r} with a path that ends in {extensions()}, got {name!r} for it. "
                "Write a header `path,label,...` where a list has more columns, or labels with spaces; if it is the "
                "list of a data set, name its form with data.source.format."
            )
    return bad
