"""Records of a manifest, kept as columns: 240,000 of them are a few arrays, not a million objects.

Worker processes are forked, and using a Python object copies its memory page: in the end each worker holds its own copy
of a list of objects. Arrays have no reference counts inside and stay shared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from itertools import pairwise
from typing import Any, overload

import numpy as np


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """A video, or a part of one, with its label."""

    path: str  # ready to open
    label: int | None  # number of its class
    start_seconds: float | None = None  # of its segment, from the video's first frame; None for the video's start
    end_seconds: float | None = None  # of its segment; None for the video's end
    source: str = ""  # what listed it: "file:line", or the folder
    groups: tuple[tuple[str, str], ...] = ()  # (column, value) of each further column of the list
    missing: bool = False  # whether the file did not exist when the list was read
    error: str = ""  # why a scan could not read it; "" if it could, or without a scan
    num_frames: int | None = None  # as a scan counted them; None without a scan, or if it could not
    fps: float | None = None  # as a scan found them; likewise


@dataclass(frozen=True, slots=True)
class TextColumn:
    """Strings of which many are equal: int32 (n,) codes into `values`."""

    codes: np.ndarray
    values: tuple[str, ...]

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> TextColumn:
        """Number the strings in the order of their first occurrence."""
        numbers: dict[str, int] = {}
        codes = np.fromiter((numbers.setdefault(text, len(numbers)) for text in strings), dtype=np.int32)
        return cls(codes, tuple(numbers))


_DECODED = 4096  # paths
_TAKEN = ("segments", "sources", "lines", "missing", "errors", "num_frames", "fps")


@dataclass(slots=True, eq=False, repr=False)
class Records(Sequence[VideoRecord]):
    """Immutable sequence of records in columns; a record is made when it is used. `names` are their paths."""

    names: InitVar[Iterable[str]]
    labels: np.ndarray  # int32 (n,), -1 for none
    _: KW_ONLY
    sources: TextColumn  # what listed each record
    lines: np.ndarray  # int32 (n,), 1-based line within the source; 0 for none
    missing: np.ndarray  # bool (n,)
    segments: np.ndarray | None = None  # float64 (n, 2), start and end in seconds, NaN for none; None if all have none
    groups: tuple[tuple[str, TextColumn], ...] = ()  # (name, column) of each further column
    errors: TextColumn | None = None  # what a scan found wrong, "" for nothing; None without a scan
    num_frames: np.ndarray | None = None  # int32 (n,), as a scan counted them, 0 for unknown; None without a scan
    fps: np.ndarray | None = None  # float64 (n,), as a scan found them, NaN for unknown; None without a scan
    _blob: np.ndarray = field(init=False)
    _offsets: np.ndarray = field(init=False)

    def __post_init__(self, names: Iterable[str]) -> None:
        self._blob, self._offsets = _pack(list(names))
        self.labels = self.labels.astype(np.int32, copy=False)
        self.lines = self.lines.astype(np.int32, copy=False)
        self.missing = self.missing.astype(bool, copy=False)
        assert all(len(column) == len(self._offsets) - 1 for column in self._arrays())

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
        counts = np.array([r.num_frames or 0 for r in records], dtype=np.int32)
        fps = np.array([r.fps for r in records], dtype=np.float64)
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
            errors=TextColumn.from_strings(r.error for r in records) if any(r.error for r in records) else None,
            num_frames=counts if counts.any() else None,
            fps=None if np.isnan(fps).all() else fps,
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
            "" if self.errors is None else self.errors.values[self.errors.codes[index]],
            None if self.num_frames is None else int(self.num_frames[index]) or None,
            None if self.fps is None else _number(self.fps[index]),
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

    def paths(self) -> Iterator[str]:
        """All paths in order, decoded many at a time."""
        for first in range(0, len(self), _DECODED):
            offsets = self._offsets[first : first + _DECODED + 1]
            blob = self._blob[offsets[0] : offsets[-1]].tobytes()
            text, bounds = os.fsdecode(blob), (offsets - offsets[0]).tolist()
            if len(text) == len(blob):  # one byte a character
                yield from (text[start:stop] for start, stop in pairwise(bounds))
            else:
                yield from (os.fsdecode(blob[start:stop]) for start, stop in pairwise(bounds))

    def source(self, index: int) -> str:
        """What listed record `index`: "file:line", or the folder."""
        name = self.sources.values[self.sources.codes[index]]
        return f"{name}:{self.lines[index]}" if self.lines[index] else name

    def group(self, name: str) -> TextColumn | None:
        """The further column of that name, or None."""
        return dict(self.groups).get(name)

    @property
    def broken(self) -> np.ndarray:
        """bool (n,): exists, but a scan could not read it."""
        if self.errors is None:
            return np.zeros(len(self), dtype=bool)
        is_error = np.array([value != "" for value in self.errors.values], dtype=bool)
        return is_error[self.errors.codes] & ~self.missing

    def take(self, indices: np.ndarray, *, labels: np.ndarray | None = None) -> Records:
        """The records at `indices`, in that order; `labels`, int32 (len(indices),), replace their own."""

        def taken(column: Any) -> Any:
            if isinstance(column, TextColumn):
                return TextColumn(column.codes[indices], column.values)
            return column if column is None else column[indices]

        return Records(
            [self.path(i) for i in indices.tolist()],
            self.labels[indices] if labels is None else labels,
            groups=tuple((name, taken(column)) for name, column in self.groups),
            **{name: taken(getattr(self, name)) for name in _TAKEN},
        )

    @property
    def nbytes(self) -> int:
        """Memory of the columns, without the few distinct strings."""
        return sum(array.nbytes for array in (self._blob, self._offsets, *self._arrays()))

    def _arrays(self) -> list[np.ndarray]:
        """The arrays that have an entry for each record."""
        columns = [self.labels, *(column for _, column in self.groups), *(getattr(self, name) for name in _TAKEN)]
        return [c.codes if isinstance(c, TextColumn) else c for c in columns if c is not None]


def _pack(paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Paths in one array of bytes, as `os.fsencode` makes them, and where each begins and the last one ends."""
    # surrogateescape keeps names that are not valid text, which file systems may hold.
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    joined = "".join(paths)
    blob = joined.encode(encoding, errors)
    offsets = np.zeros(len(paths) + 1, dtype=np.int64)
    if len(blob) == len(joined):
        lengths = list(map(len, paths))
    else:
        lengths = [len(path.encode(encoding, errors)) for path in paths]
    np.cumsum(lengths, out=offsets[1:])
    return np.frombuffer(blob, dtype=np.uint8), offsets


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _split_source(source: str) -> tuple[str, int]:
    """`file:line` -> (file, line); anything else -> (itself, 0)."""
    name, colon, line = source.rpartition(":")
    return (name, int(line)) if colon and line.isdecimal() and line.isascii() and line[0] != "0" else (source, 0)
