"""What a scan has found out so far, in a file beside its target: a scan that was killed goes on from there."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from video_gn import files as locks
from video_gn.errors import ManifestError
from video_gn.lists.scan_columns import FactColumns, FileFacts

log = logging.getLogger(__name__)

_VERSION = 1
# Lines that may wait in memory, and how long: what a kill loses is probed again.
_FLUSH_LINES = 32
_FLUSH_SECONDS = 1.0


class Journal:
    """Lines of json: first what was asked for, then [path, facts...] of each file; the last line of a file counts.

    Args:
        target: the manifest that will be written.
        depth: how closely files are looked at; a journal of another depth is not used.

    Raises:
        ManifestError: where another scan writes the same target now, or the journal cannot be written.
    """

    def __init__(self, target: Path, *, depth: str) -> None:
        self.path = target.with_name(f".{target.name}.partial")
        self._head = {"scan": _VERSION, "depth": depth, "columns": ["path", *FileFacts._fields]}
        self._num_waiting = 0
        self._flushed_at = time.monotonic()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("a+b")
            is_ours = locks.take(self._file)
        except OSError as error:
            raise ManifestError(f"{self.path}: the journal of the scan cannot be written: {error.strerror}") from error
        if not is_ours:
            self._file.close()
            raise ManifestError(f"{target}: another scan is writing it. Wait for that one, or choose another target.")

    def load(self, places: Mapping[str, int], columns: FactColumns) -> int:
        """Read what an earlier scan left, and go on after its last whole line.

        Args:
            places: the place of each path.
            columns: filled in.

        Returns:
            Number of files that are known; each must still be checked for a change.
        """
        self._file.seek(0)
        whole, num_bad = 0, 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break  # half a line: the earlier scan was killed while it wrote
            if number == 0 and _parse(line) != self._head:
                log.warning("%s: it is of another kind of scan, or damaged; all files are probed again", self.path)
                break
            whole += len(line)
            if number == 0:
                continue
            row = _parse(line)
            if not _is_row(row):
                num_bad += 1
            elif row[0] in places:
                columns.set(places[row[0]], row[1:])
        if num_bad:
            log.warning("%s: %d damaged lines of it are left out", self.path, num_bad)
        self._file.truncate(whole)
        if whole == 0:
            self._file.write(json.dumps(self._head).encode() + b"\n")
        self.flush()
        return int(columns.is_done.sum())

    def add(self, path: str, facts: FileFacts) -> None:
        """Write down what was found out about a file."""
        self._file.write(json.dumps([path, *facts]).encode() + b"\n")
        self._num_waiting += 1
        if self._num_waiting >= _FLUSH_LINES or time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand the lines to the system, where they outlive this process."""
        self._file.flush()
        self._num_waiting = 0
        self._flushed_at = time.monotonic()

    def remove(self) -> None:
        """Take the journal away: the target is written."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()  # a closed file is flushed, and its lock is free


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_row(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != 1 + len(FileFacts._fields) or not isinstance(row[0], str):
        return False
    facts = FileFacts(*row[1:])
    numbers = (value for name, value in zip(FileFacts._fields, facts, strict=True) if name not in ("codec", "error"))
    return (
        isinstance(facts.error, str)
        and isinstance(facts.codec, str | None)
        and all(value is None or type(value) in (int, float) for value in numbers)
    )
