"""Files made in a directory, each noted in a journal, so that a stopped run resumes.

A file is written under a temporary name, noted, and renamed: a file whose size is the noted one is whole. A file that
is made anew is removed before it is noted.

Processes that each do a part of the work note it in journals of their own, which the next run without parts takes over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from video_gn.errors import ConfigError, RefusedError
from video_gn.files import HeldError, hold, naming_unwritable, remove_temporary
from video_gn.journal import Journal, append, decode, whole_lines
from video_gn.parts import Part, check_parts, find_parts, missing_parts

JOURNAL = ".prepare.journal"
_LOCK = ".prepare.lock"


def key_of(content: Sequence[Any]) -> str:
    """The key of a file that is made from `content`: the same for the same content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class MadeFiles:
    """A directory's notes by file name; the last note of a name counts. A note is a dict with "name" and "key".

    Args:
        directory: Claimed by this process.
        part: Part of the work that this process does.
        merge: Read the notes of all parts, and write none.
    """

    def __init__(self, directory: Path, *, part: Part | None = None, merge: bool = False) -> None:
        self.directory = directory
        self.journal = directory / JOURNAL if part is None else part.path(directory / JOURNAL)
        self._notes: dict[str, dict[str, Any]] = {}
        parts = [path for _, path in find_parts(directory / JOURNAL)]
        if part is not None or merge:
            self._read(whole_lines(directory / JOURNAL))
        if merge:
            self._read(chain.from_iterable(map(whole_lines, parts)))
            return
        with Journal(self.journal) as journal:
            self._read(journal.resume())
            if part is None and parts:
                for path in parts:
                    for line in self._read(whole_lines(path)):
                        journal.add(decode(line))
                journal.sync()
                for path in parts:
                    path.unlink()

    def _read(self, lines: Iterator[bytes]) -> list[bytes]:
        """Take over notes; returns their lines."""
        good = []
        for line in lines:
            note = decode(line)
            if isinstance(note, dict) and "name" in note:
                self._notes[note["name"]] = note
                good.append(line)
        return good

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


def announce(directory: Path, journal: Path, note: dict[str, Any]) -> None:
    """Note a file of a directory that is whole under its temporary name and is renamed next."""
    (directory / note["name"]).unlink(missing_ok=True)
    append(journal, note)


# ---- parts -------------------------------------------------------------------------------------


def finish_part(made: MadeFiles, plan: str, key: str) -> None:
    """Note that a part of a plan is done; `key` is the same for the same list and settings."""
    append(made.journal, {"name": plan, "key": key})


def check_finished(directory: Path, plan: str, key: str) -> int:
    """Refuse to merge parts that are missing or not finished, or of other lists, settings or divisions.

    Returns:
        The number of parts.

    Raises:
        ConfigError: naming the first part that is to be run.
    """
    merge, again = f"--merge: {directory}", "Run the same command with --part"
    parts = find_parts(directory / JOURNAL)
    if not parts:
        raise ConfigError(f"{merge}: its parts must be there, got none. {again} 0/8, and so on.")
    missing = missing_parts(merge, [part for part, _ in parts])
    if missing:
        words = ", ".join(map(str, missing))
        raise ConfigError(f"{merge}: must have {missing[0].count} parts, missing {words}. {again} {missing[0]}.")
    for part, path in parts:
        notes = [note for note in map(decode, whole_lines(path)) if isinstance(note, dict) and note.get("name") == plan]
        if not notes:
            raise unfinished(directory, part)
        if notes[-1]["key"] != key:
            raise ConfigError(
                f"{merge}: part {part} must be of the list and settings that are merged, got others. {again} {part}."
            )
    return len(parts)


def unfinished(directory: Path, part: Part) -> ConfigError:
    """The error for a part of which some is not made."""
    return ConfigError(
        f"--merge: {directory}: part {part} must be finished, got one that is not, or whose videos have changed. "
        f"Run the same command with --part {part}."
    )


@contextmanager
def claimed(directory: Path, part: Part | None = None) -> Iterator[None]:
    """Keep other runs out of a directory, or out of a part of its work; remove the temporary files of killed ones.

    A part's temporary files are removed by the next run without parts.

    Raises:
        ConfigError: for a part beside those of another division.
        RefusedError: if another run is writing to it, it is no directory, or it cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise RefusedError(f"{directory}: out_dir must be a directory, got a file. Choose another name.")
    with ExitStack() as stack:
        try:
            with naming_unwritable(directory / _LOCK):
                directory.mkdir(parents=True, exist_ok=True)
                if part is None:
                    stack.enter_context(hold(directory / _LOCK))
                    for _, path in find_parts(directory / _LOCK):
                        hold(path).close()
                else:
                    stack.enter_context(hold(part.path(directory / _LOCK)))
                    hold(directory / _LOCK).close()  # a run without parts keeps it to its end
        except HeldError as error:
            raise RefusedError(
                f"{directory}: another run ({error.holder}) is writing to out_dir. Wait for it, or choose another."
            ) from error
        if part is None:
            remove_temporary(directory, recursive=True)
        else:
            check_parts(directory / JOURNAL, part)
        yield
