"""What has been made in a directory, so that an interrupted run goes on where it stopped.

A file is written under another name, noted in the journal, and renamed: a name that stands in the journal with
the size that the file has is a whole file. A file that is made anew is removed before its note is written.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from video_gn.errors import RunError
from video_gn.files import HeldError, hold, remove_temporary

log = logging.getLogger(__name__)

JOURNAL = ".prepare.journal"
_LOCK = ".prepare.lock"


class Journal:
    """Notes by name; the last one of a name counts.

    Args:
        directory: whose files it tells of.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / JOURNAL
        self._entries: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        for line in data.splitlines():
            try:
                entry = json.loads(line)
                self._entries[entry["name"]] = entry
            except (ValueError, KeyError, TypeError):  # a run was ended while it wrote
                log.debug("%s: a line is not whole", self.path)
        if data and not data.endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")

    def find(self, name: str, key: str) -> dict[str, Any] | None:
        """The note of what was made from the same things in the same way: a whole file, or a failure."""
        entry = self._entries.get(name)
        if entry is None or entry.get("key") != key:
            return None
        return entry if "failed" in entry or self.is_whole(entry) else None

    def noted(self, name: str, key: str) -> dict[str, Any] | None:
        """As `find`, whether or not the file is still there."""
        entry = self._entries.get(name)
        return entry if entry is not None and entry.get("key") == key else None

    def is_whole(self, entry: dict[str, Any]) -> bool:
        """Whether the file that a note tells of is there."""
        try:
            return (self.directory / entry["name"]).stat().st_size == entry["bytes"]
        except (OSError, KeyError):
            return False

    def names(self, suffix: str) -> list[str]:
        """Names that end so and whose files are there."""
        return [name for name, entry in self._entries.items() if name.endswith(suffix) and self.is_whole(entry)]

    def keep(self, entry: dict[str, Any]) -> None:
        """Take over a note that `note` has written."""
        self._entries[entry["name"]] = entry


def note(directory: Path, entry: dict[str, Any]) -> None:
    """Add a note to a directory's journal; safe on disk on return. Several processes may do so at once."""
    line = (json.dumps(entry, sort_keys=True) + "\n").encode()
    descriptor = os.open(directory / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def announce(directory: Path, entry: dict[str, Any]) -> None:
    """Note a file that is written whole under its temporary name, and is given its own next."""
    (directory / entry["name"]).unlink(missing_ok=True)
    note(directory, entry)


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory, and remove what killed ones have left half written.

    Raises:
        RunError: where another run is at work in it, or it is no directory.
    """
    if directory.exists() and not directory.is_dir():
        raise RunError(f"{directory}: out_dir must be a directory, got a file. Choose another name.")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = hold(directory / _LOCK)
    except HeldError as error:
        raise RunError(
            f"{directory}: another run ({error.holder}) is at work in out_dir. Wait for it, or choose another."
        ) from error
    with lock:
        remove_temporary(directory, recursive=True)
        yield
