"""Rows of a manifest, kept as columns: 240,000 of them are a few arrays, not a million objects.

Worker processes are forked: touching a Python object copies its memory page, so a list of objects is
in the end held once by each worker. Arrays are never touched by reference counts and stay shared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """A video, or a part of one, with its label.

    Args:
        path: where it lies, ready to open.
        label: number of its class; None where it has none.
        start_seconds: where its segment begins, from the video's first frame; None is its beginning.
        end_seconds: where its segment ends; None is the video's end.
        source: what listed it: "file:line", or the folder.
        groups: (column, value) of each further column of the list.
        missing: listed, but no such file was there when the list was read.
    """

    path: str
    label: int | None
    start_seconds: float | None = None
    end_seconds: float | None = None
    source: str = ""
    groups: tuple[tuple[str, str], ...] = ()
    missing: bool = False


@dataclass(frozen=True, slots=True)
class TextColumn:
    """Strings of which many are equal: int32 (n,) codes into `values`."""

    codes: np.ndarray
    values: tuple[str, ...]

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> TextColumn:
        """Number the strings in the order in which they first come."""
        numbers: dict[str, int] = {}
        codes = np.fromiter((numbers.setdefault(text, len(numbers)) for text in strings), dtype=np.int32)
        return cls(codes, tuple(numbers))


class Records(Sequence[VideoRecord]):
    """An unchangeable sequence of records in columns; each record is made when it is asked for.

    Args:
        paths: one for each record.
        labels: int32 (n,), -1 for none.
        segments: float64 (n, 2), start and end in seconds, NaN for none; None where no record has any.
        sources: what listed each record.
        lines: int32 (n,), 1-based line within the source; 0 for none.
        groups: (name, column) of each further column.
        missing: bool (n,).
    """

    __slots__ = ("_blob", "_offsets", "groups", "labels", "lines", "missing", "segments", "sources")

    def __init__(
        self,
        paths: Iterable[str],
        labels: np.ndarray,
        *,
        segments: np.ndarray | None = None,
        sources: TextColumn,
        lines: np.ndarray,
        groups: tuple[tuple[str, TextColumn], ...] = (),
        missing: np.ndarray,
    ) -> None:
        # fsencode keeps names that are no valid text: a file system may hold such.
        encoded = [os.fsencode(path) for path in paths]
        self._blob = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(name) for name in encoded], out=self._offsets[1:])
        self.labels = labels.astype(np.int32, copy=False)
        self.segments = segments
        self.sources = sources
        self.lines = lines.astype(np.int32, copy=False)
        self.groups = groups
        self.missing = missing.astype(bool, copy=False)
        columns = [self.labels, self.sources.codes, self.lines, self.missing, *(c.codes for _, c in groups)]
        columns += [] if segments is None else [segments]
        assert all(len(column) == len(encoded) for column in columns)

    @classmethod
    def from_records(cls, records: Sequence[VideoRecord]) -> Records:
        """Columns of records; each must have the same group columns."""
        if isinstance(records, Records):
            return records
        names = [name for name, _ in records[0].groups] if records else []
        for record in records:
            if [name for name, _ in record.groups] != names:
                raise ValueError(f"groups must be the columns {names} in every record, got {record.groups} in {record}")
        segments = np.array([(r.start_seconds, r.end_seconds) for r in records], dtype=np.float64).reshape(-1, 2)
        pairs = [_split_source(r.source) for r in records]
        return cls(
            [r.path for r in records],
            np.array([-1 if r.label is None else r.label for r in records], dtype=np.int32),
            segments=None if np.isnan(segments).all() else segments,
            sources=TextColumn.from_strings(name for name, _ in pairs),
            lines=np.array([line for _, line in pairs], dtype=np.int32),
            groups=tuple(
                (name, TextColumn.from_strings(r.groups[i][1] for r in records)) for i, name in enumerate(names)
            ),
            missing=np.array([r.missing for r in records], dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> VideoRecord | Records:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be in [{-len(self)}, {len(self)}), got {index}")
        index = int(index) % len(self)
        label = int(self.labels[index])
        start, end = (None, None) if self.segments is None else (_number(x) for x in self.segments[index])
        return VideoRecord(
            self.path(index),
            None if label < 0 else label,
            start,
            end,
            self.source(index),
            tuple((name, column.values[column.codes[index]]) for name, column in self.groups),
            bool(self.missing[index]),
        )

    def __iter__(self) -> Iterator[VideoRecord]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} records>"

    def path(self, index: int) -> str:
        """Path of record `index`, 0 <= index < n, without making the record."""
        return os.fsdecode(self._blob[self._offsets[index] : self._offsets[index + 1]].tobytes())

    def source(self, index: int) -> str:
        """What listed record `index`: "file:line", or the folder."""
        name = self.sources.values[self.sources.codes[index]]
        return f"{name}:{self.lines[index]}" if self.lines[index] else name

    def group(self, name: str) -> TextColumn | None:
        """A further column, or None where there is none of that name."""
        return dict(self.groups).get(name)

    def take(self, indices: np.ndarray, *, labels: np.ndarray | None = None) -> Records:
        """The records at `indices`, in that order; with other labels, int32 (len(indices),), if given."""
        return Records(
            [self.path(i) for i in indices],
            self.labels[indices] if labels is None else labels,
            segments=None if self.segments is None else self.segments[indices],
            sources=TextColumn(self.sources.codes[indices], self.sources.values),
            lines=self.lines[indices],
            groups=tuple((name, TextColumn(column.codes[indices], column.values)) for name, column in self.groups),
            missing=self.missing[indices],
        )

    @property
    def nbytes(self) -> int:
        """Memory of the columns, without the few distinct strings."""
        arrays: list[np.ndarray] = [
            self._blob,
            self._offsets,
            self.labels,
            self.lines,
            self.missing,
            self.sources.codes,
        ]
        arrays += [column.codes for _, column in self.groups]
        arrays += [] if self.segments is None else [self.segments]
        return sum(array.nbytes for array in arrays)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _split_source(source: str) -> tuple[str, int]:
    """`file:line` -> (file, line); anything else -> (itself, 0)."""
    name, colon, line = source.rpartition(":")
    return (name, int(line)) if colon and line.isdecimal() and line.isascii() and line[0] != "0" else (source, 0)
