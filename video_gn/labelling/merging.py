"""Merges the results of a list's parts into one file, in the list's order; only a piece of each is in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from video_gn.errors import ConfigError
from video_gn.evaluation.results import write_results
from video_gn.files import whole_file
from video_gn.journal import encode
from video_gn.labelling.lines import LINES_SUFFIX, About, about_path, difference, read_about, read_entry, write_about
from video_gn.labelling.running import Tally
from video_gn.parts import Part, find_parts, missing_parts

log = logging.getLogger(__name__)

# Read from a part at a time: some tens of lines. Files are opened for each piece: a process may not hold thousands.
_PIECE_BYTES = 1 << 16
_PARTIAL = "--partial merges what there is."


def merge(name: Path, output: Path, *, partial: bool = False, overwrite: bool = False) -> Tally:
    """Write the results of all parts of a list, or of its one file, as one run without parts would have.

    Args:
        name: The --output that the runs were given, X.jsonl.
        output: File to write, .json, .csv or .jsonl.
        partial: Merge although parts are missing or not finished; the results keep their order.
        overwrite: Replace a .jsonl that is not the result of a merge.

    Raises:
        ConfigError: parts are missing, not finished, or of different lists or settings; or the output is one of them.
    """
    sources = _find(name, output, partial=partial)
    about = _check(sources, name, partial=partial)
    tally = Tally()

    def entries() -> Iterator[dict[str, Any]]:
        return _interleave(sources, about, partial=partial)

    def counted(*, failed: bool) -> Iterator[dict[str, Any]]:
        for entry in entries():
            if ("reason" in entry) == failed:
                tally.add(entry)
                yield entry

    if output.suffix == LINES_SUFFIX:
        _write_lines(output, entries(), about, tally, overwrite=overwrite)
    else:
        write_results(output, counted(failed=False), counted(failed=True))  # failures come at the end
    return tally


PartFile = tuple[Part, Path]


def _find(name: Path, output: Path, *, partial: bool) -> list[PartFile]:
    parts = find_parts(name)
    missing = missing_parts(f"--merge {name}", [part for part, _ in parts]) if parts else []
    if not parts:
        if not name.exists():
            raise ConfigError(
                f"--merge {name}: it or its parts ({Part(0, 8).path(name).name}, ...) must be there, got neither. "
                "Give the --output that the runs were given."
            )
        parts = [(Part(0, 1), name)]
    elif name.exists() and not getattr(read_about(name), "merged", False):
        raise ConfigError(
            f"--merge {name}: must be a file or its parts, got both ({parts[0][1].name}, ...). Remove one of the two."
        )
    if output.absolute() in [path.absolute() for _, path in parts]:
        raise ConfigError(f"--output must be another file than --merge reads, got {output}.")
    if len({part for part, _ in parts}) < len(parts):
        raise ConfigError(
            f"--merge {name}: each part must be one file, got a .part- and a .shard- file of the same part. Remove one "
            "of the two."
        )
    if missing:
        words = f"--merge {name}: must have {missing[0].count} parts, missing {', '.join(map(str, missing))}"
        if not partial:
            raise ConfigError(f"{words}. Run infer with --part {missing[0]}; {_PARTIAL}")
        log.warning("%s", words)
    return parts


def _check(sources: Sequence[PartFile], name: Path, *, partial: bool) -> About:
    """What the merged lines were made with; all parts must agree."""
    found: list[About] = []
    unfinished = []
    for part, path in sources:
        about = read_about(path)
        if about is None:
            raise ConfigError(f"{path}: must have {about_path(path).name} beside it, got none. Copy it there too.")
        wanted = None if path == name else str(part)
        if about.part != wanted:
            names = [name or "the whole list" for name in (wanted, about.part)]
            raise ConfigError(
                f"{path}: must be {names[0]}, got {names[1]}. Give the file the name that it was written under."
            )
        words = None if not found else difference(about, found[0])
        if words is not None:
            raise ConfigError(f"{path}: {words} of {sources[0][1].name}. Label one of the two anew with --overwrite.")
        if about.complete is None:
            unfinished.append(path)
        found.append(about)
    if unfinished:
        words = f"not finished: {', '.join(path.name for path in unfinished)}"
        if not partial:
            raise ConfigError(f"--merge {name}: parts must be finished, got {words}. Run them again; {_PARTIAL}")
        log.warning("%s", words)
    _check_lists(sources, found)
    complete = found[0].complete
    if unfinished or complete is None or len(sources) != sources[0][0].count:
        return replace(found[0], part=None, merged=True, complete=None)
    return replace(found[0], part=None, merged=True, complete={**complete, "videos": complete["listed"]})


def _check_lists(sources: Sequence[PartFile], found: Sequence[About]) -> None:
    finished = [(s, path, a.complete) for (s, path), a in zip(sources, found, strict=True) if a.complete is not None]
    for part, path, complete in finished:
        first = finished[0][2]
        if (complete["listed"], complete["sha256"]) != (first["listed"], first["sha256"]):
            raise ConfigError(
                f"{path}: must be of the same list as {finished[0][1].name}, {first['listed']} videos, got one of "
                f"{complete['listed']}. Run infer again with one list for all parts; with --overwrite where it asks."
            )
        if complete["videos"] != part.size(complete["listed"]):
            raise ConfigError(
                f"{about_path(path)}: a part {part} of {complete['listed']} videos must have "
                f"{part.size(complete['listed'])} of them, got {complete['videos']}. Label it anew with --overwrite."
            )


def _interleave(sources: Sequence[PartFile], about: About, *, partial: bool) -> Iterator[dict[str, Any]]:
    """A line of each part in turn, which is the list's order; a part that has ended is left out."""
    listed = None if partial or about.complete is None else about.complete["listed"]
    readers = [(_read(path), None if listed is None else part.size(listed), path) for part, path in sources]
    number = 0
    while readers:
        unfinished = []
        for reader, wanted, path in readers:
            entry = next(reader, None)
            num_lines = number + (entry is not None)
            if wanted is not None and num_lines != min(wanted, number + 1):
                more = "fewer" if entry is None else "more"
                raise ConfigError(
                    f"{path}: must have {wanted} lines, as when it was finished, got {more}. Is the copy whole? "
                    "If so, label it anew with --overwrite."
                )
            if entry is not None:
                yield entry
                unfinished.append((reader, wanted, path))
        readers = unfinished
        number += 1


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Entries of whole lines, read piece by piece."""
    offset, number, size = 0, 0, _PIECE_BYTES
    while True:
        with path.open("rb") as file:
            file.seek(offset)
            piece = file.read(size)
        whole = piece[: piece.rfind(b"\n") + 1]
        if not whole:
            if len(piece) < size:
                return  # the end, or a line that a kill has cut off
            size *= 2
            continue
        offset, size = offset + len(whole), _PIECE_BYTES
        for line in whole[:-1].split(b"\n"):
            number += 1
            yield read_entry(line, path, number)


def _write_lines(
    output: Path, entries: Iterator[dict[str, Any]], about: About, tally: Tally, *, overwrite: bool
) -> None:
    if output.exists() and not overwrite and not getattr(read_about(output), "merged", False):
        raise ConfigError(
            f"--output must be new or the result of a merge, got {output}. Choose another, or add --overwrite."
        )
    with whole_file(output, "wb") as file:
        for entry in entries:
            tally.add(entry)
            file.write(encode(entry))
        write_about(output, about)
