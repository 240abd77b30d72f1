"""Facts about video files that a scan finds, kept as columns: 240,000 files are a few arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class FileFacts(NamedTuple):
    """One file. Unknown facts are None; with an `error`, all but the last three are."""

    num_frames: int | None = None  # that decode (`full`), that the packets promise, or that the header claims
    fps: float | None = None
    duration_seconds: float | None = None  # from the first frame's time to the end of the last one
    width: int | None = None  # px, as a viewer sees it
    height: int | None = None
    codec: str | None = None  # FFmpeg's name
    rotation: int | None = None  # clockwise turn in degrees that a reader applies
    key_frame_interval: int | None = None  # longest distance from a key frame to the next one or to the end, in frames
    size_bytes: int | None = None  # None if the file is missing
    error: str = ""  # why the video cannot be read
    mtime_ns: int | None = None  # when the file was last written; None if it is missing


# Decoders' error for a file that does not exist, and so a scan's.
MISSING = "the file is missing"
# Columns that a scan writes into a manifest, in this order. Readers have no use for a file's time.
SCAN_COLUMNS = FileFacts._fields[:-1]
# A list with these two columns was written by a scan.
SCAN_MARKS = frozenset(("num_frames", "error"))
_TEXTS = ("codec", "error")
_WIDE: dict[str, Any] = {
    "fps": np.float64,
    "duration_seconds": np.float64,
    "size_bytes": np.int64,
    "mtime_ns": np.int64,
}
_NUMBERS = {name: _WIDE.get(name, np.int32) for name in FileFacts._fields if name not in _TEXTS}


class FactColumns:
    """Facts of many files, by place."""

    def __init__(self, num_files: int) -> None:
        self.is_done = np.zeros(num_files, dtype=bool)
        # -1 or NaN stands for unknown: no such number occurs.
        self.numbers: dict[str, np.ndarray] = {
            name: np.full(num_files, np.nan if dtype is np.float64 else -1, dtype=dtype)
            for name, dtype in _NUMBERS.items()
        }
        self._codes = {name: np.zeros(num_files, dtype=np.int32) for name in _TEXTS}
        self._texts: dict[str, dict[str, int]] = {name: {"": 0} for name in _TEXTS}

    def set(self, index: int, facts: Sequence[Any]) -> None:
        """Store the facts of a file, replacing earlier ones."""
        for name, value in zip(FileFacts._fields, facts, strict=True):
            if name in self._codes:
                numbers = self._texts[name]
                self._codes[name][index] = numbers.setdefault(value or "", len(numbers))
            else:
                column = self.numbers[name]
                column[index] = (np.nan if column.dtype.kind == "f" else -1) if value is None else value
        self.is_done[index] = True

    def texts(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """A column of strings: int32 (num_files,) codes, and what they stand for; 0 is ""."""
        return self._codes[name], tuple(self._texts[name])

    @property
    def has_error(self) -> np.ndarray:
        """bool (num_files,)."""
        return self._codes["error"] > 0

    def column(self, name: str, rows: np.ndarray) -> list[Any]:
        """Values of a column at some places, None for unknown."""
        if name in self._codes:
            codes, values = self.texts(name)
            return [values[code] for code in codes[rows].tolist()]
        column = self.numbers[name][rows]
        known = ~np.isnan(column) if column.dtype.kind == "f" else column >= 0
        return [value if there else None for value, there in zip(column.tolist(), known.tolist(), strict=True)]
