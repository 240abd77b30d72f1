"""What a scan has found so far, in a file that it resumes from; and that of its parts, from which they are merged.

    .scan.csv.partial                               of a whole scan, removed at its end
    scan.csv.part-00002-of-00008.jsonl              of a part, which stays

A line is `[path, facts...]`; the last one of a file counts. A part's ends with the list that it was finished for.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from video_gn.errors import ConfigError
from video_gn.journal import Journal, decode, whole_lines
from video_gn.lists.scan_columns import FactColumns, FileFacts
from video_gn.parts import Part, check_parts, find_parts, missing_parts
from video_gn.prepare.probe import Depth

log = logging.getLogger(__name__)

_VERSION = 1
_END = "scanned"  # key of a part's last line


def open_journal(target: Path, depth: Depth, part: Part | None) -> Journal:
    """The journal beside the target, for this process alone.

    Raises:
        ConfigError: for a part beside those of another division.
        RunError: if another scan writes it.
    """
    if part is None:
        path = target.with_name(f".{target.name}.partial")
        return Journal(path, header=_header(depth, None), lock=path.with_name(f"{path.name}.lock"))
    check_parts(_of_parts(target), part)
    path = part.path(_of_parts(target))
    return Journal(path, header=_header(depth, part), lock=path.with_name(f".{path.name}.lock"))


def _of_parts(target: Path) -> Path:
    """The name from which those of parts are made."""
    return target.with_name(f"{target.name}.jsonl")


def _header(depth: Depth, part: Part | None) -> dict[str, Any]:
    header = {"scan": _VERSION, "depth": depth, "columns": ["path", *FileFacts._fields]}
    return header if part is None else {**header, "part": str(part)}


def load(journal: Journal, keys: Sequence[str], facts: FactColumns) -> None:
    """Take over what an earlier scan has found; each file must still be checked for a change."""
    places = {key: place for place, key in enumerate(keys)}
    num_bad = 0
    for line in journal.resume():
        num_bad += not _take(decode(line), places, facts)
    if num_bad:
        log.warning("%s: %d damaged lines are left out", journal.path, num_bad)
    if facts.is_done.any():
        log.info("%s: %d of %d files are known from an earlier scan", journal.path, facts.is_done.sum(), len(keys))


def finish_part(journal: Journal, keys: Sequence[str]) -> None:
    """Note that all files of a part are done, and of which list they are."""
    journal.add({_END: _list_of(keys)})
    journal.sync()


def merge_parts(target: Path, depth: Depth, keys: Sequence[str], facts: FactColumns) -> None:
    """Take over what the parts of a scan have found.

    Raises:
        ConfigError: for parts that are missing or not finished, or of other options, lists or divisions.
    """
    parts = find_parts(_of_parts(target))
    if not parts:
        first = Part(0, 8).path(_of_parts(target)).name
        raise ConfigError(f"--merge {target}: its parts ({first}, ...) must be there, got none. Run them with --part.")
    missing = missing_parts(f"--merge {target}", [part for part, _ in parts])
    if missing:
        raise ConfigError(
            f"--merge {target}: must have {missing[0].count} parts, missing {', '.join(map(str, missing))}. Run the "
            f"scan with --part {missing[0]}."
        )
    places = {key: place for place, key in enumerate(keys)}
    wanted = _list_of(keys)
    for part, path in parts:
        again = f"Run it with --part {part}."
        last: Any = None
        for number, line in enumerate(whole_lines(path)):
            last = decode(line)
            if number > 0:
                _take(last, places, facts)
            elif last != _header(depth, part):
                found = [last.get("part"), last.get("depth")] if isinstance(last, dict) else "something else"
                raise ConfigError(
                    f"{path}: must be part {part} of a scan of {depth}, got {found}. Merge with the parts' options, or "
                    "run this one again."
                )
        got = last.get(_END) if isinstance(last, dict) else None
        if got is None:
            raise ConfigError(f"{path}: part {part} must be finished, got one that is not. {again}")
        if got != wanted:
            raise ConfigError(
                f"{path}: must be of the list that is merged, of {wanted['files']} files, got one of {got['files']}. "
                "Run all parts again with one list; each probes only what is new."
            )
        lost = ~facts.is_done[part.index :: part.count]
        if lost.any():
            name = keys[part.index :: part.count][int(np.argmax(lost))]
            raise ConfigError(f"{path}: must have a line for each of its files, got none for {name!r}. {again}")


def _list_of(keys: Sequence[str]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for key in keys:
        digest.update(os.fsencode(key) + b"\0")
    return {"files": len(keys), "sha256": digest.hexdigest()}


def _take(row: Any, places: dict[str, int], facts: FactColumns) -> bool:
    """Take over a line's facts, if they are of a listed file; False for a damaged line."""
    if isinstance(row, dict) and _END in row:
        return True
    if not _is_row(row):
        return False
    if row[0] in places:
        facts.set(places[row[0]], row[1:])
    return True


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
