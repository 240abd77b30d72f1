"""The manifest: records with their classes; its subsets, splits and comparisons, and its csv."""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH100, PTH118

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat, zip_longest
from pathlib import Path, PurePath

import numpy as np

from video_gn.errors import ManifestError
from video_gn.lists.class_names import class_key, same_classes, write_classes
from video_gn.lists.lines import some, write_table
from video_gn.lists.records import Records, TextColumn, VideoRecord
from video_gn.lists.split import pick_fraction, pick_grouped, pick_stratified
from video_gn.shown import count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """Records with their classes."""

    records: Sequence[VideoRecord]  # any sequence; kept as columns
    classes: tuple[str, ...]  # names by number
    origin: str  # file or folder it was read from, for messages

    def __post_init__(self) -> None:
        records = Records.from_records(self.records)
        if len(records) and records.labels.max() >= len(self.classes):
            raise ValueError(
                f"labels must be below {len(self.classes)}, the number of classes, got {records.labels.max()} "
                f"in {self.origin}. Give all classes."
            )
        object.__setattr__(self, "records", records)
        object.__setattr__(self, "classes", tuple(self.classes))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def missing(self) -> int:
        """Number of listed files that do not exist."""
        return int(self.columns.missing.sum())

    @property
    def broken(self) -> int:
        """Number of listed files that exist, but that a scan could not read."""
        return int(self.columns.broken.sum())

    @property
    def labels(self) -> np.ndarray:
        """int32 (n,), -1 for none."""
        return self.columns.labels

    @property
    def columns(self) -> Records:
        """The records as arrays."""
        assert isinstance(self.records, Records)
        return self.records

    def digest(self, *, of_copies: bool = False) -> str:
        """SHA-256 of the records in their order: paths, labels, segments and a scan's errors.

        Args:
            of_copies: equal for copies elsewhere: only the names of paths, and no errors.
        """
        # Column by column: making each record takes seconds for 240,000 of them, on every rank of a run.
        columns, none = self.columns, repeat(None)
        labels = (None if label < 0 else label for label in columns.labels.tolist())
        starts, ends = (none, none) if columns.segments is None else (_numbers(c) for c in columns.segments.T)
        rows: Iterator[tuple[object, ...]] = zip(columns.paths(), labels, starts, ends, strict=False)
        if of_copies:
            rows = ((_name(row[0]), *row[1:]) for row in rows)
        elif columns.errors is None:
            rows = ((*row, "") for row in rows)
        else:
            values = columns.errors.values
            rows = ((*row, values[code]) for row, code in zip(rows, columns.errors.codes.tolist(), strict=True))
        digest = hashlib.sha256()
        for row in rows:
            digest.update(repr(row).encode("utf-8", "surrogatepass") + b"\n")
        return f"SHA-256 {digest.hexdigest()}"

    def drop_missing(self) -> Manifest:
        """The manifest without the listed files that do not exist."""
        return self._take(~self.columns.missing) if self.missing else self

    def drop_broken(self) -> Manifest:
        """The manifest without the files that a scan could not read."""
        return self._take(~self.columns.broken) if self.broken else self

    def subset(self, *, classes: Sequence[str] | None = None, fraction: float = 1.0, seed: int = 0) -> Manifest:
        """Some classes, or a part of each class, in the manifest's order.

        Args:
            classes: names to keep; they get new numbers, in the manifest's order. Spaces and underscores are the
                same.
            fraction: part of each class to keep, in (0, 1], at least one record. A smaller fraction keeps a part
                of what a larger one keeps.
            seed: seed of the draw, at least 0.

        Raises:
            ValueError: for a fraction outside (0, 1].
            ManifestError: for an unknown class, or if nothing is left.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {fraction!r}.")
        result = self if classes is None else self._of_classes(classes)
        if fraction < 1:
            keep = pick_fraction(result.labels, result.classes, fraction, seed=seed)
            result = result._take(keep)
        return result

    def split(
        self,
        *,
        val_fraction: float = 0.2,
        seed: int = 0,
        group_by: str | None = None,
        val_groups: Sequence[str] | None = None,
    ) -> tuple[Manifest, Manifest]:
        """Split into training and validation records.

        Without `group_by` each class gives its share, at least one video if it has two; segments of one
        video stay on one side.

        Args:
            val_fraction: validation's part, in (0, 1); with groups as near as they allow.
            seed: seed of the draw, at least 0.
            group_by: a column of the list ("person"; of class folders "folder", the folders between
                class and video), or a regular expression with one pair of brackets, searched in file
                names (`_g(\\d+)_` for UCF101): no group lies on both sides.
            val_groups: groups for validation; None draws them.

        Returns:
            (training, validation), each in the manifest's order.

        Raises:
            ValueError: for a fraction outside (0, 1), or `val_groups` without `group_by`.
            ManifestError: for an unknown column or group, or if a side would be empty.
        """
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be in (0, 1), got {val_fraction!r}.")
        if val_groups is not None and group_by is None:
            raise ValueError(f"group_by must be given with val_groups, got None with {list(val_groups)!r}.")
        groups = self._groups(group_by) if group_by is not None else self._repeated_paths()
        if groups is None:
            held = pick_stratified(self.labels, self.classes, val_fraction, seed=seed)
        elif val_groups is not None:
            chosen = {str(name) for name in val_groups}
            unknown = sorted(chosen - set(groups.values))
            if unknown:
                raise ManifestError(
                    f"{self.origin}: val_groups must be groups of {group_by!r} ({some(sorted(groups.values))}), "
                    f"got {unknown}. Correct the names."
                )
            held = np.array([name in chosen for name in groups.values], dtype=bool)[groups.codes]
        elif len(groups.values) < 2:
            raise ManifestError(
                f"{self.origin}: groups must be at least 2 to split by {group_by or 'video'!r}, "
                f"got {list(groups.values)}. Split by something else."
            )
        else:
            held = pick_grouped(self.labels, groups.codes, val_fraction, seed=seed)
        for name, side in (("training", ~held), ("validation", held)):
            if not side.any():
                raise ManifestError(
                    f"{self.origin}: a split of {count(len(self), 'video')} must leave some for {name}, got none. "
                    "List more videos, or other val_groups."
                )
            absent = np.setdiff1d(self.labels, self.labels[side])
            if len(absent):
                names = [self.classes[number] if number >= 0 else "no label" for number in absent]
                log.warning("%s: the split leaves no video for %s of %s", self.origin, name, some(names))
        return self._take(~held), self._take(held)

    def _take(self, keep: np.ndarray) -> Manifest:
        return replace(self, records=self.columns.take(np.flatnonzero(keep)))

    def _of_classes(self, names: Sequence[str]) -> Manifest:
        numbers = {class_key(name): number for number, name in enumerate(self.classes)}
        unknown = [name for name in names if class_key(name) not in numbers]
        if unknown:
            raise ManifestError(
                f"{self.origin}: classes must be of its {count(len(self.classes), 'class', 'classes')} "
                f"({some(self.classes)}), got {some(unknown)}. Correct the names."
            )
        kept = sorted({numbers[class_key(name)] for name in names})
        renumber = np.full(len(self.classes) + 1, -1, dtype=np.int32)  # the last is for the label -1
        renumber[kept] = np.arange(len(kept))
        labels = renumber[self.labels]
        indices = np.flatnonzero(labels >= 0)
        if not len(indices):
            raise ManifestError(
                f"{self.origin}: a subset must have at least one video, got none of {some(list(names))}."
            )
        records = self.columns.take(indices, labels=labels[indices])
        return replace(self, records=records, classes=tuple(self.classes[number] for number in kept))

    def _groups(self, group_by: str) -> TextColumn:
        records = self.columns
        column = records.group(group_by)
        if column is None and "(" in group_by:
            column = TextColumn.from_strings(_searched(records, group_by, self.origin))
        if column is None:
            columns = [name for name, _ in records.groups]
            raise ManifestError(
                f"{self.origin}: group_by must be one of the columns {columns} or a regular expression with "
                f"brackets, got {group_by!r}."
            )
        used = np.unique(column.codes)
        values = tuple(column.values[code] for code in used)
        if "" in values:
            first = int(np.flatnonzero(column.codes == used[values.index("")])[0])
            raise ManifestError(
                f"{records.source(first)}: {group_by} must not be empty to split by it, got '' for "
                f"{records.path(first)}. Fill the column."
            )
        return TextColumn(np.searchsorted(used, column.codes).astype(np.int32), values)

    def _repeated_paths(self) -> TextColumn | None:
        """Paths as groups, if several segments of a video are listed."""
        if self.columns.segments is None:
            return None
        column = TextColumn.from_strings(self.columns.paths())
        return column if len(column.values) < len(self) else None


def _numbers(column: np.ndarray) -> Iterator[float | None]:
    return (None if number != number else number for number in column.tolist())


def _name(path: object) -> str:
    """The last part of a path, as pathlib has it."""
    name = str(path).rpartition("/")[2]
    return name if os.sep == "/" and name not in ("", ".") else PurePath(str(path)).name


def _searched(records: Records, pattern: str, origin: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"group_by must be a column or a regular expression, got {pattern!r}: {error}.") from error
    found = []
    for index in range(len(records)):
        name = Path(records.path(index)).name
        match = compiled.search(name)
        if match is None or not match.groups() or match[1] is None:
            raise ManifestError(f"{origin}: group_by must match every file name, got {pattern!r} and {name!r}.")
        found.append(match[1])
    return found


# ---- between manifests ---------------------------------------------------------------------------


def check_same_classes(reference: Manifest, other: Manifest) -> None:
    """Raise ManifestError if two manifests number their classes differently; one without classes fits all."""
    if not reference.classes or not other.classes or same_classes(reference.classes, other.classes):
        return
    pairs = enumerate(zip_longest(reference.classes, other.classes))
    number, pair = next((n, pair) for n, pair in pairs if None in pair or class_key(pair[0]) != class_key(pair[1]))
    first, second = ("not there" if name is None else repr(name) for name in pair)
    raise ManifestError(
        f"classes of {reference.origin} ({len(reference.classes)}) and {other.origin} ({len(other.classes)}) must be "
        f"the same in the same order, got class {number} as {first} and as {second}. Read both with the same classes."
    )


def common_videos(first: Manifest, second: Manifest) -> list[str]:
    """Paths in both manifests, in the second's order: training and validation should share none."""
    mine = set(map(os.path.normpath, first.columns.paths()))
    return [path for path in dict.fromkeys(second.columns.paths()) if os.path.normpath(path) in mine]


# ---- writing -------------------------------------------------------------------------------------


def write_manifest(
    manifest: Manifest, path: str | os.PathLike[str], *, classes_path: str | os.PathLike[str] | None = None
) -> None:
    """Write a csv that `read_manifest` reads: path, label, segments, groups, and a scan's columns.

    Args:
        manifest: what to write. Labels are written as names.
        path: the csv. Paths of videos below its directory are written relative to it, others absolute.
        classes_path: file for the class names, one per line; without it, the numbers of classes that are
            not sorted by name, or that have no video, are lost.

    Raises:
        ManifestError: for a path with characters that are not text.
    """
    path = Path(path)
    records = manifest.columns
    with_labels = bool((records.labels >= 0).any())
    header = ["path", *(["label"] if with_labels else [])]
    header += [] if records.segments is None else ["start_seconds", "end_seconds"]
    header += [name for name, _ in records.groups]
    is_scan = records.errors is not None or records.num_frames is not None
    header += ["num_frames", "fps", "error"] if is_scan else []
    base = os.path.join(os.path.abspath(path.parent), "")

    def row(record: VideoRecord) -> list[str]:
        full = os.path.abspath(record.path)
        fields = [full.removeprefix(base)]
        if with_labels:
            fields.append("" if record.label is None else manifest.classes[record.label])
        if records.segments is not None:
            fields += ["" if x is None else repr(x) for x in (record.start_seconds, record.end_seconds)]
        fields += [value for _, value in record.groups]
        if is_scan:
            fields += [*("" if x is None else repr(x) for x in (record.num_frames, record.fps)), record.error]
        return fields

    write_table(path, [header, *(row(record) for record in records)])
    if classes_path is not None:
        write_classes(classes_path, manifest.classes)
