"""A journal that a stopped job resumes from: a line of JSON for each thing done, appended as it is done.

    {"scan": 1, "depth": "packets"}     header, if there is one: what the lines were made with
    ["a.mp4", 250, 25.0]
    ["b.mp4", 2                         what a kill has cut off is dropped, and done again

A line goes to the system in one piece and without a buffer, where it outlives this process.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from video_gn.errors import RefusedError, UnwritableError
from video_gn.files import HeldError, hold, naming_unwritable

log = logging.getLogger(__name__)


def encode(entry: Any) -> bytes:
    """A line with its end. Line breaks in names are escaped; bytes of a file name that are no text stay as they are."""
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogateescape") + b"\n"


def decode(line: bytes) -> Any:
    """The entry of a line; None if it is damaged."""
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError:
        return None


def whole_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file with their ends, up to one that a kill has cut off; none if there is no file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write to a file without a buffer, which may take a part at a time.

    Raises:
        DiskFullError: no room.
        RunError: another error of the disk.
    """
    rest = memoryview(data)
    with naming_unwritable(Path(file.name)):
        while rest:
            rest = rest[file.write(rest) :]


def append(path: Path, entry: Any) -> None:
    """Append a line that is safe on disk on return; several processes may do so at once. Errors as `write_all`."""
    with naming_unwritable(path), path.open("ab", buffering=0) as file:
        write_all(file, encode(entry))
        os.fsync(file.fileno())


class Journal:
    """The lines that an earlier process has left, and those that this one appends.

    Args:
        path: File; made with its directory if it is not there.
        header: First line; a file with another one counts as empty. None for a file without a header.
        lock: Lock file to hold until `close`; None if what lies around the file is held already.

    Raises:
        RefusedError: another process holds the lock.
        DiskFullError, UnwritableError: the directory cannot be written to.
    """

    def __init__(self, path: Path, *, header: Any = None, lock: Path | None = None) -> None:
        self.path = path
        self._header = header
        self._file: IO[bytes] | None = None
        self._lock_path = lock
        with naming_unwritable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock: IO[str] | None = None if lock is None else hold(lock)
            except HeldError as error:
                raise RefusedError(
                    f"{path} is being written by another run ({error.holder}). Wait for it, or choose another name."
                ) from error

    def resume(self) -> Iterator[bytes]:
        """Yield the whole lines after the header; at their end cut off what is left, and be ready for `add`.

        Unless the caller takes all lines, the file stays untouched.
        """
        size = 0
        for number, line in enumerate(whole_lines(self.path)):
            if number == 0 and self._header is not None:
                if decode(line) != self._header:
                    log.warning("%s was made with other settings, or is damaged: starting anew", self.path)
                    break
            else:
                yield line
            size += len(line)
        self._open(size)

    def start(self) -> None:
        """Drop the lines that are there, and be ready for `add`."""
        self._open(0)

    def _open(self, size: int) -> None:
        with naming_unwritable(self.path):
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(size)
        if size == 0 and self._header is not None:
            self.add(self._header)

    def add(self, entry: Any) -> None:
        """Append a line; errors as `write_all`.

        Raises:
            UnwritableError: the file was removed meanwhile: nobody would see the line.
        """
        assert self._file is not None, "resume() or start() first"
        write_all(self._file, encode(entry))
        if not os.fstat(self._file.fileno()).st_nlink:
            raise UnwritableError(f"{self.path} was removed while it was being written. Run the command again.")

    def sync(self) -> None:
        """Have all lines on the disk on return."""
        assert self._file is not None, "resume() or start() first"
        with naming_unwritable(self.path):
            os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Remove the file and its lock: the job is done."""
        self.path.unlink(missing_ok=True)
        if self._lock_path is not None:
            self._lock_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, and let go of the lock."""
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
