"""What every reader of lists gives, and how labels become numbers and rows are chosen by their part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from video_gn.errors import ManifestError
from video_gn.lists.file_names import part_names
from video_gn.lists.tables import LABEL_COLUMNS, Problems, Table, class_key, some

log = logging.getLogger(__name__)

SPLIT_COLUMN = "split"
ALL_PARTS = "all"


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
        splits: the part of each row, as the list or folder names it; None where it has no parts.
        errors: what a scan found wrong, "" for nothing; None where no scan wrote the list.
        num_frames: int32 (n,), as a scan counted them, 0 for not known; likewise.
        fps: float64 (n,), as a scan found them, NaN for not known; likewise.
    """

    source: str
    paths: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    lines: np.ndarray
    missing: np.ndarray
    segments: np.ndarray | None = None
    groups: dict[str, list[str]] = field(default_factory=dict)
    splits: list[str] | None = None
    errors: list[str] | None = None
    num_frames: np.ndarray | None = None
    fps: np.ndarray | None = None


@dataclass(frozen=True)
class Request:
    """What a reader is asked for; see `read_manifest`."""

    path: Path
    root: Path | None
    classes: tuple[str, ...] | None
    split: str | None
    separator: str | None
    check_files: bool


def number_labels(
    table: Table, classes: tuple[str, ...] | None, problems: Problems
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, int32 (n,), -1 for none, and the classes, of all rows, whatever their part."""
    column = table.column(*LABEL_COLUMNS)
    if column is None or not any(column):
        return np.full(len(table), -1, dtype=np.int32), classes or ()
    distinct = set(column)
    for label, line in zip(column, table.lines, strict=True) if "" in distinct else ():
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
    for label, line in zip(column, table.lines, strict=True) if not distinct <= numbers.keys() else ():
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


def rows_of_part(table: Table, split: str | None) -> np.ndarray:
    """Places of the rows of a part, int64; all rows where nothing is asked and there is but one part."""
    column = table.column(SPLIT_COLUMN)
    if split == ALL_PARTS or (split is None and column is None):
        return np.arange(len(table))
    if column is None:
        raise ManifestError(f"{table.path}: split must be None for a list without a column 'split', got {split!r}.")
    present = sorted(set(column))
    if split is None:
        if len(present) > 1:
            raise ManifestError(which_part(table.path, present))
        return np.arange(len(table))
    wanted = {name.lower() for name in part_names(split)}
    asked_for = {value for value in present if value.lower() in wanted}
    rows = np.flatnonzero([value in asked_for for value in column])
    if not len(rows):
        raise ManifestError(f"{table.path}: split must be one of {present}, got {split!r}. No row is of that part.")
    return rows


def which_part(path: Path, parts: Sequence[str]) -> str:
    """The error of a list with several parts of which none was named."""
    return f"{path}: split must be one of {list(parts)} or 'all', got None. Say which part is meant."
