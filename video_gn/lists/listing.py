"""What a reader of lists gives: columns of all rows, the rows of a part, and rows that name the same video."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from video_gn.errors import ManifestError
from video_gn.lists.class_names import class_key, is_slip
from video_gn.lists.lines import Problems, some
from video_gn.lists.part_names import is_part, part_of
from video_gn.shown import count

log = logging.getLogger(__name__)

SPLIT_COLUMN = "split"
ALL_PARTS = "all"
SEGMENT_COLUMNS = ("start_seconds", "end_seconds")
WHOLE_NUMBER = re.compile(r"-?[0-9]+(?:\.0*)?")
# Other names of columns that say where a part of a video starts or ends: startFrame, stop_timestamp, t_end, begin (s).
_UNIT = r"s|secs?|seconds?|ms|msecs?|milliseconds?|us|min|minutes?|frames?|frame_?(?:id|idx|index|number|num)|times?"
_UNIT += r"|time_?(?:s|secs?|seconds?|ms)|time_?stamps?|ts|pts|id|idx|index|pos|position|offset"
_SEGMENT_COLUMN = re.compile(
    r"(?:(?:segments?|seg|clip|video|action|event|label|annotation|trim|temporal|t|time|timestamp|frame|sec|seconds)_?)?"
    rf"(?:start(?:ing)?|end(?:ing)?|begin(?:ning)?|stop|finish|onset)(?:_?(?:{_UNIT}))?"
    r"|segments?|time_?stamps|trim|interval|time_?(?:range|span|interval)|frame_?(?:range|span|interval)"
)
_NOTHING = {"nan", "none", "null", "na", "n/a", "<na>"}
_NUMBER_PAIR = re.compile(r"[\[(]?\s*[0-9.:]+\s*[-,;: ]\s*[0-9.:]+\s*[\])]?")


@dataclass
class Listing:
    """What a reader found in `source`, a file or folder, as columns of equal length, as those of `Records`.

    Args:
        splits: the part of each row, as the list or folder names it; None without parts.
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

    def take(self, rows: np.ndarray) -> Listing:
        """The listing of some of its rows, int64 in ascending order; of all rows its very columns."""
        if len(rows) == len(self.paths):
            return replace(self)

        def taken(column: Any) -> Any:
            if isinstance(column, list):
                return [column[row] for row in rows.tolist()]
            return column if column is None else column[rows]

        names = ("paths", "labels", "lines", "missing", "segments", "splits", "errors", "num_frames", "fps")
        groups = {name: taken(column) for name, column in self.groups.items()}
        return replace(self, groups=groups, **{name: taken(getattr(self, name)) for name in names})


# ---- parts ---------------------------------------------------------------------------------------


def rows_of_part(listing: Listing, split: str | None) -> np.ndarray:
    """Places of a part's rows, int64; all rows for None if there is at most one part."""
    column = listing.splits
    present = sorted(set(column or ()))
    if split is None and len(present) > 1:
        raise ManifestError(which_part(listing.source, present))
    if split is None or split == ALL_PARTS:
        return np.arange(len(listing.paths))
    if column is None:
        raise ManifestError(f"{listing.source}: split must be None for a list without a column 'split', got {split!r}.")
    asked_for = {name for name in present if is_part(name, split)}
    rows = np.flatnonzero([name in asked_for for name in column])
    if not len(rows):
        raise ManifestError(f"{listing.source}: split must be one of {present}, got {split!r}. No row is of that part.")
    if len({name.lower() for name in asked_for}) > 1:
        log.warning("%s: the parts %s are taken as one, %r", listing.source, sorted(asked_for), split)
    return rows


def warn_of_other_parts(listing: Listing) -> None:
    """Log how many rows have a part, or none, that is neither training nor validation nor test, and which."""
    counts = Counter(name for name in listing.splits or () if part_of(name) is None)
    if counts:
        rows = count(counts.total(), "row is left out: its part is", "rows are left out: their part is")
        log.warning("%s: %s neither train, val nor test, but %s", listing.source, rows, some(sorted(counts)))


def which_part(path: str | Path, parts: Sequence[str]) -> str:
    """The error's text for a list with several parts of which none was named."""
    return (
        f"{path}: split must be one of {list(parts)} or 'all', got None. Call the parts train, val and test, or give "
        "each a list of its own."
    )


# ---- what a list may mean otherwise ------------------------------------------------------------------


def check_segment_columns(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Raise ManifestError for a column of starts or ends that has another name: whole videos would be read."""
    for name, fields in columns.items():
        plain = re.sub(r"[^a-z0-9]+", "_", name).strip("_")
        if name in SEGMENT_COLUMNS or not _SEGMENT_COLUMN.fullmatch(plain):
            continue
        # "segment" may also number the parts of a recording: with pairs of numbers it is start and end.
        is_pair = not re.search("start|end|begin|stop|finish|onset", plain)
        if is_pair and not any(_NUMBER_PAIR.fullmatch(field.strip()) for field in fields):
            continue
        raise ManifestError(
            f"{path}:1: columns of segments must be called {list(SEGMENT_COLUMNS)}, got {name!r}. Write both in "
            "seconds from the video's start under these names, or rename the column if it is no segment."
        )


def check_odd_labels(
    path: Path,
    column: Sequence[str],
    lines: Sequence[int],
    whole: Collection[str],
    classes: tuple[str, ...] | None,
) -> None:
    """Question labels that seem to be slips: a name among numbers, "none" among names.

    Args:
        path: the list.
        column: each row's label.
        lines: each row's line.
        whole: those of the labels that are whole numbers.
        classes: names of classes that are given, which settle what a label is.

    Raises:
        ManifestError: if most of the different labels are whole numbers and few are not; it names the lines.
    """
    known = set(map(class_key, classes or ()))
    others = {label: row for row, label in reversed(list(enumerate(column))) if label and label not in whole}
    odd = sorted(row for label, row in others.items() if class_key(label) not in known)
    if odd and len(whole) >= 3 * len(others):
        problems = Problems(path)
        for row in odd:
            problems.add(
                lines[row],
                f"label must be a whole number as most labels are, got {column[row]!r}. Correct the line; if it is a "
                "class's name, name all classes in data.source.classes.",
            )
        problems.check()
    for row in odd if classes is None else ():
        if column[row].lower() in _NOTHING:
            text = "%s:%d: the label %r is taken as the name of a class. If it means none, leave the line out"
            log.warning(text, path, lines[row], column[row])
    several = [label for label in others if "|" in label]
    if classes is None and 2 * len(several) > len(others):
        row = others[several[-1]]
        text = "%s:%d: %r is taken as one class. If it is several labels, keep one of them"
        log.warning(text, path, lines[row], column[row])


def ask_about_numbers(listing: Listing, labels: Iterable[str]) -> None:
    """Log what numbers are taken for where the classes are another list's or a checkpoint's names.

    `labels` are the list's own texts. Nothing is logged if the videos' folders are all called as their labels' classes.
    """
    names = {text for text in labels if text}
    if not names or not all(map(WHOLE_NUMBER.fullmatch, names)) or any(map(WHOLE_NUMBER.fullmatch, listing.classes)):
        return
    keys = [class_key(name) for name in listing.classes]
    known, of_folders = set(keys), set()
    for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
        folder = class_key(path.rpartition("/")[0].rpartition("/")[2])
        if label >= 0 and folder in known:
            of_folders.add(keys[label] == folder)
    if of_folders != {True}:
        pairs = ", ".join(f"{number} is {name!r}" for number, name in enumerate(listing.classes[:4]))
        log.warning(
            "%s: labels are numbers, and the classes are the names of another list, of folders or of a checkpoint: "
            "%s%s. If the list's numbers mean other classes, set data.source.classes to its names in their order",
            *(listing.source, pairs, ", ..." if len(listing.classes) > 4 else ""),
        )


def ask_about_parts(listing: Listing) -> None:
    """Log a question for a column, folders below classes, or paths, with names of parts that are not read as such."""
    if listing.splits is not None:
        return
    for name, column in listing.groups.items():
        names = sorted({text.split("/")[0] for text in set(column)} - {""})
        if len(names) > 1 and all(part_of(text) for text in names):
            of_folders = not listing.lines.any()
            log.warning(
                "%s: do %s name each video's part (%s)? They are not read so: %s",
                listing.source,
                "folders below its classes" if of_folders else f"fields of its column {name!r}",
                ", ".join(names),
                "put them above the classes, PART/CLASS" if of_folders else f"call the column {SPLIT_COLUMN!r}",
            )
    if listing.lines.any():
        start = os.path.commonprefix(listing.paths).rpartition("/")[0]  # noqa: RUF071 (a whole folder is left)
        tops = sorted({path[len(start) :].lstrip("/").partition("/")[0] for path in listing.paths})
        if len(tops) > 1 and all(part_of(top) for top in tops):
            log.warning(
                "%s: do the folders %s that its paths begin with name each video's part? They are not read so: add a "
                "column %r, or give each part a list of its own",
                *(listing.source, some(tops), SPLIT_COLUMN),
            )


def ask_about_slips(listing: Listing) -> None:
    """Log a question for a class of one video that looks like a slip in writing another, and for two but for case."""
    labels = listing.labels[listing.labels >= 0]
    numbers = dict(zip(listing.classes, np.bincount(labels, minlength=len(listing.classes)).tolist(), strict=True))
    pairs = [(rare, name) for rare in numbers if numbers[rare] == 1 for name in numbers if numbers[name] > 1]
    by_case: dict[str, str] = {}
    for name in listing.classes:
        other = by_case.setdefault(name.casefold(), name)
        pairs += [(name, other)] if other != name and min(numbers[name], numbers[other]) != 1 else []
    for name, other in pairs:
        if is_slip(name, other):
            log.warning(
                "%s: is class %r (videos: %d) a slip in writing %r (videos: %d)? If so, correct it; "
                "if both are classes, name all classes in data.source.classes",
                listing.source,
                *(name, numbers[name], other, numbers[other]),
            )


# ---- rows that name the same video ---------------------------------------------------------------


def check_repeats(listing: Listing) -> None:
    """Raise ManifestError if a list names a video, or the same segment of one, twice."""
    _, repeats = _find_repeats(listing, by_part=False)
    if repeats:
        raise _listed_twice(listing, *repeats[0])


def drop_repeats(listing: Listing) -> Listing:
    """The listing without rows that are repeated in the same part, with a warning.

    Raises:
        ManifestError: for a repeat with another label.
    """
    kept, repeats = _find_repeats(listing, by_part=True)
    for first, row in repeats:
        if listing.labels[first] != listing.labels[row]:
            raise _listed_twice(listing, first, row)
    if not repeats:
        return listing
    first, row = repeats[0]
    lines = listing.lines[[first, row]].tolist()
    log.warning(
        "%s:%d: %s listed before, such as %r in line %d",
        listing.source,
        lines[1],
        count(len(repeats), "row is left out: it is", "rows are left out: they are"),
        listing.paths[row],
        lines[0],
    )
    return listing.take(np.array(kept, dtype=np.int64))


def _find_repeats(listing: Listing, *, by_part: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Places of the rows that come first; (place of the first, place of its repeat)."""
    paths = listing.paths
    # Most lists have no path twice, which a set shows at once if each file has only one way to write its path.
    if len(set(paths)) == len(paths) and not any("/." in path or "//" in path for path in paths):
        return list(range(len(paths))), []
    seen: dict[object, int] = {}
    kept: list[int] = []
    repeats: list[tuple[int, int]] = []
    for row, path in enumerate(paths):
        name = os.path.normpath(path) if "/." in path or "//" in path else path
        part = listing.splits[row].lower() if by_part and listing.splits is not None else ""
        segment = () if listing.segments is None else np.nan_to_num(listing.segments[row], nan=-1.0).tolist()
        first = seen.setdefault((part, name, *segment), row)
        if first == row:
            kept.append(row)
        else:
            repeats.append((first, row))
    return kept, repeats


def _listed_twice(listing: Listing, first: int, row: int) -> ManifestError:
    lines = listing.lines[[first, row]].tolist()
    return ManifestError(
        f"{listing.source}:{lines[1]}: a video must be listed once, got {listing.paths[row]!r} again, which line "
        f"{lines[0]} has too. Remove one of the two."
    )
