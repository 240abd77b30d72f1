"""Rows of a list that name the same part of the same video."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import numpy as np

from video_gn.errors import ManifestError
from video_gn.lists.csv_lists import Listing

log = logging.getLogger(__name__)


def first_rows(listing: Listing) -> np.ndarray:
    """Places of the rows that are no repeats: int64; those are told, and a repeat with another label is an error."""
    seen: dict[object, int] = {}
    kept: list[int] = []
    repeats: list[tuple[int, int]] = []
    for row, path in enumerate(listing.paths):
        part = "" if listing.splits is None else listing.splits[row].lower()
        first = seen.setdefault((part, _row_key(listing, row, path)), row)
        if first == row:
            kept.append(row)
        elif listing.labels[first] == listing.labels[row]:
            repeats.append((first, row))
        else:
            raise _listed_twice(listing, first, row)
    if repeats:
        first, row = repeats[0]
        lines = listing.lines[[first, row]].tolist()
        log.warning(
            "%s:%d: %d rows are left out: they are listed before, such as %r in line %d",
            listing.source,
            lines[1],
            len(repeats),
            listing.paths[row],
            lines[0],
        )
    return np.array(kept, dtype=np.int64)


def pick_rows(listing: Listing, rows: np.ndarray) -> Listing:
    """The listing of some of its rows."""

    def texts(column: list[str] | None) -> list[str] | None:
        return None if column is None else [column[row] for row in rows.tolist()]

    def numbers(column: np.ndarray | None) -> np.ndarray | None:
        return None if column is None else column[rows]

    return replace(
        listing,
        paths=texts(listing.paths) or [],
        labels=listing.labels[rows],
        lines=listing.lines[rows],
        missing=listing.missing[rows],
        segments=numbers(listing.segments),
        groups={name: texts(column) or [] for name, column in listing.groups.items()},
        splits=texts(listing.splits),
        errors=texts(listing.errors),
        num_frames=numbers(listing.num_frames),
        fps=numbers(listing.fps),
    )


def check_duplicates(listing: Listing) -> None:
    """Refuse a list that names a video twice."""
    # Most lists have no path twice: that is seen at once, where every file has but one way to write its path.
    if len(set(listing.paths)) == len(listing.paths) and not any("/." in p or "//" in p for p in listing.paths):
        return
    seen: dict[object, int] = {}
    for row, path in enumerate(listing.paths):
        first = seen.setdefault(_row_key(listing, row, path), row)
        if first != row:
            raise _listed_twice(listing, first, row)


def _row_key(listing: Listing, row: int, path: str) -> object:
    """What two rows have in common that mean the same part of the same file."""
    name = os.path.normpath(path) if "/." in path or "//" in path else path
    return name if listing.segments is None else (name, *np.nan_to_num(listing.segments[row], nan=-1.0).tolist())


def _listed_twice(listing: Listing, first: int, row: int) -> ManifestError:
    lines = listing.lines[[first, row]].tolist()
    return ManifestError(
        f"{listing.source}:{lines[1]}: a video must be listed once, got {listing.paths[row]!r} again, which line "
        f"{lines[0]} has too. Remove one of the two."
    )
