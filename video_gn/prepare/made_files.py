"""Files made in a directory, each noted in a journal, so that a stopped run resumes.

A file is written under a temporary name, noted, and renamed: a file whose size is the noted one is whole. A file that
is made anew is removed before it is noted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from video_gn.errors import RunError
from video_gn.files import HeldError, hold, naming_unwritable, remove_temporary
from video_gn.journal import Journal, append, decode

JOURNAL = ".prepare.journal"
_LOCK = ".prepare.lock"


def key_of(content: Sequence[Any]) -> str:
    """The key of a file that is made from `content`: the same for the same content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class MadeFiles:
    """A directory's notes by file name; the last note of a name counts. A note is a dict with "name" and "key"."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._notes: dict[str, dict[str, Any]] = {}
        with Journal(directory / JOURNAL) as journal:
            for line in journal.resume():
                note = decode(line)
                if isinstance(note, dict) and "name" in note:
                    self._notes[note["name"]] = note

    def find(self, name: str, key: str) -> dict[str, Any] | None:
        """The note of a file made from the same things in the same way, if it is whole or a failure."""
        note = self.noted(name, key)
        return note if note is not None and ("failed" in note or self._is_whole(note)) else None

    def noted(self, name: str, key: str) -> dict[str, Any] | None:
        """As `find`, whether or not the file is still there."""
        note = self._notes.get(name)
        return note if note is not None and note.get("key") == key else None

    def names(self, suffix: str) -> list[str]:
        """Names of whole files that end in `suffix`."""
        return [name for name, note in self._notes.items() if name.endswith(suffix) and self._is_whole(note)]

    def keep(self, note: dict[str, Any]) -> None:
        """Remember a note that another process may have written."""
        self._notes[note["name"]] = note

    def _is_whole(self, note: dict[str, Any]) -> bool:
        try:
            return (self.directory / note["name"]).stat().st_size == note["bytes"]
        except (OSError, KeyError):
            return False


def add_note(directory: Path, note: dict[str, Any]) -> None:
    """Append a note to a directory's journal; safe on disk on return. Several processes may do so at once."""
    append(directory / JOURNAL, note)


def announce(directory: Path, note: dict[str, Any]) -> None:
    """Note a file that is whole under its temporary name and is renamed next."""
    (directory / note["name"]).unlink(missing_ok=True)
    add_note(directory, note)


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory, and remove the temporary files of killed ones.

    Raises:
        RunError: if another run is writing to it, it is no directory, or it cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise RunError(f"{directory}: out_dir must be a directory, got a file. Choose another name.")
    try:
        with naming_unwritable(directory / _LOCK):
            directory.mkdir(parents=True, exist_ok=True)
            lock = hold(directory / _LOCK)
    except HeldError as error:
        raise RunError(
            f"{directory}: another run ({error.holder}) is writing to out_dir. Wait for it, or choose another."
        ) from error
    with lock:
        remove_temporary(directory, recursive=True)
        yield
