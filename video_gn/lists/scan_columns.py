"""What a scan finds out about files, kept as columns: 240,000 files are a few arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class FileFacts(NamedTuple):
    """One file. What is not known is None; where `error` says why, that is all but the last three.

    Args:
        num_frames: frames that decode (`full`), that the packets promise, or that the header claims.
        fps: frames per second.
        duration_seconds: from the first frame's time to the end of the last one.
        width: px, as a viewer sees it.
        height: px, as a viewer sees it.
        codec: FFmpeg's name.
        rotation: clockwise turn in degrees that a reader applies.
        key_frame_interval: the longest way from one key frame to the next, or to the end, in frames.
        size_bytes: of the file; None where it is missing.
        error: why the video cannot be read; "" where it can.
        mtime_ns: when the file was last written; None where it is missing.
    """

    num_frames: int | None = None
    fps: float | None = None
    duration_seconds: float | None = None
    width: int | None = None
    height: int | None = None
    codec: str | None = None
    rotation: int | None = None
    key_frame_interval: int | None = None
    size_bytes: int | None = None
    error: str = ""
    mtime_ns: int | None = None


# What the decoders, and so a scan, say of a file that is not there.
MISSING = "the file is missing"
# What a scan writes into a manifest, in this order. The time of a file is of no use to its readers.
SCAN_COLUMNS = FileFacts._fields[:-1]
# A list with these two columns was written by a scan.
SCAN_MARKS = frozenset(("num_frames", "error"))
_TEXTS = ("codec", "error")
_NUMBERS = {
    "num_frames": np.int32,
    "fps": np.float64,
    "duration_seconds": np.float64,
    "width": np.int32,
    "height": np.int32,
    "rotation": np.int32,
    "key_frame_interval": np.int32,
    "size_bytes": np.int64,
    "mtime_ns": np.int64,
}


class FactColumns:
    """Facts of many files, by place.

    Args:
        num_files: how many.
    """

    def __init__(self, num_files: int) -> None:
        self.is_done = np.zeros(num_files, dtype=bool)
        # -1 or NaN stands for what is not known: no such number occurs.
        self.numbers: dict[str, np.ndarray] = {
            name: np.full(num_files, np.nan if dtype is np.float64 else -1, dtype=dtype)
            for name, dtype in _NUMBERS.items()
        }
        self._codes = {name: np.zeros(num_files, dtype=np.int32) for name in _TEXTS}
        self._texts: dict[str, dict[str, int]] = {name: {"": 0} for name in _TEXTS}

    def set(self, index: int, facts: Sequence[Any]) -> None:
        """Keep the facts of a file; they replace what was known of it."""
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
        """Values of a column at some places, None for what is not known."""
        if name in self._codes:
            codes, values = self.texts(name)
            return [values[code] for code in codes[rows].tolist()]
        column = self.numbers[name][rows]
        known = ~np.isnan(column) if column.dtype.kind == "f" else column >= 0
        return [value if there else None for value, there in zip(column.tolist(), known.tolist(), strict=True)]
