"""Lists of videos with their labels: class folders, `path label` lists, csv, the official Kinetics csv.

A manifest is read whole and checked before anything is trained: what cannot be read is an error that
names file and line. Listed files that are not there stay in it, marked, so that a test can count them.
"""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH100, PTH110, PTH112, PTH118, PTH122, PTH207

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from video_gn.errors import ManifestError
from video_gn.lists.class_folders import FORMATS, SPLIT_COLUMN, Listing, Request, find_format
from video_gn.lists.file_names import VIDEO_EXTENSIONS, find_part, part_names, walk_videos
from video_gn.lists.manifest import Manifest
from video_gn.lists.records import Records, TextColumn, VideoRecord
from video_gn.lists.repeats import check_duplicates, first_rows, pick_rows
from video_gn.lists.tables import (
    LIST_SUFFIXES,
    check_classes,
    read_classes,
    read_header,
    read_table,
    write_classes,
    write_table,
)

__all__ = [
    "FORMATS",
    "VIDEO_EXTENSIONS",
    "Manifest",
    "VideoRecord",
    "check_same_classes",
    "common_videos",
    "find_videos",
    "has_split",
    "read_classes",
    "read_manifest",
    "write_manifest",
]

log = logging.getLogger(__name__)

# What the decoders, and so a scan, say of a file that is not there.
MISSING = "the file is missing"


def read_manifest(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    classes: Sequence[str] | str | os.PathLike[str] | None = None,
    split: str | None = None,
    separator: str | None = None,
    check_files: bool = True,
) -> Manifest:
    """Read a list of videos, or the folder that holds them.

    Formats:
        folders: `<class>/.../<video>`, also below `train/`, `val/`, `test/`. Classes are sorted by name.
            A folder of numbered pictures (see `video_gn.decoding`) is a video, here and in lists.
        list: `path label` lines with one separator (space, comma, tab or semicolon); the last field is
            the label; or mmaction2's `folder num_frames label`. Or a csv with a header: `path`, and where
            wanted `label`, `start_seconds`, `end_seconds`, `split`, and other columns to group by. Labels are
            names or numbers from 0. The same as parquet. Where a scan wrote it, what the scan found wrong is
            known of each video.
        kinetics: the official csv over `<youtube_id>_<start>_<end>.mp4` files, flat or in class folders.

    Args:
        path: the list, or the folder.
        root: directory that relative paths start from; None is the list's own.
        format: "auto", or one of `FORMATS`.
        classes: names by number, or a file with one per line (or json); None takes them from the list.
            Spaces and underscores in names are the same.
        split: a part: "train", "val", "test" or another name in a csv's column `split`; "all" reads all.
        separator: of a list's fields; None finds it.
        check_files: look which files are there; without it none is marked as missing.

    Returns:
        records in the order of the file; of folders in the order of the names.

    Raises:
        ManifestError: for what cannot be read, is empty or does not fit; it names file and lines.
        ValueError: for an unknown format or separator.
    """
    listing = read_listing(
        path, root=root, format=format, classes=classes, split=split, separator=separator, check_files=check_files
    )
    if listing.errors is not None and check_files:
        _forget_found(listing, listing.errors)
    manifest = Manifest(
        Records(
            listing.paths,
            listing.labels,
            segments=listing.segments,
            sources=TextColumn(np.zeros(len(listing.paths), dtype=np.int32), (listing.source,)),
            lines=listing.lines,
            groups=tuple((name, TextColumn.from_strings(column)) for name, column in listing.groups.items()),
            missing=listing.missing,
            errors=None if listing.errors is None else TextColumn.from_strings(listing.errors),
            num_frames=listing.num_frames,
            fps=listing.fps,
        ),
        listing.classes,
        listing.source if split is None else f"{listing.source} ({split})",
    )
    log.info("%s: %d videos of %d classes", manifest.origin, len(manifest), len(manifest.classes))
    if manifest.missing:
        first = int(np.argmax(listing.missing))
        log.warning(
            "%s: %d of %d listed videos are not there (%s, ...)",
            manifest.origin,
            manifest.missing,
            len(manifest),
            listing.paths[first],
        )
    if manifest.broken:
        first = int(np.argmax(manifest.columns.broken))
        record = manifest.records[first]
        log.warning(
            "%s: %d of %d listed videos are known to be broken (%s: %s, ...)",
            manifest.origin,
            manifest.broken,
            len(manifest),
            record.path,
            record.error,
        )
    return manifest


def read_listing(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    classes: Sequence[str] | str | os.PathLike[str] | None = None,
    split: str | None = None,
    separator: str | None = None,
    check_files: bool = True,
    drop_repeats: bool = False,
) -> Listing:
    """Read a list of videos as `read_manifest` does, with what only a scan wants to know: the parts.

    Args:
        path: see `read_manifest`, as for the other arguments.
        root: directory that relative paths start from.
        format: "auto", or one of `FORMATS`.
        classes: names by number, or a file with them.
        split: a part, or "all".
        separator: of a list's fields.
        check_files: look which files are there.
        drop_repeats: leave out a row that is listed again with the same label and in the same part, and
            say so once; otherwise it is an error.

    Raises:
        ManifestError: see `read_manifest`.
        ValueError: see `read_manifest`.
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"format must be one of {['auto', *FORMATS]}, got {format!r}.")
    if not path.exists():
        raise ManifestError(
            f"{path}: the list or folder must be there, got no such file or directory. Is the path right?"
        )
    if root is not None and not Path(root).is_dir():
        raise ManifestError(f"{root}: root must be a directory, got something else. It is where relative paths start.")
    if format == "auto":
        format = find_format(path, separator)
    if path.is_dir() != (format == "folders"):
        kind = "a directory" if path.is_dir() else "a file"
        raise ManifestError(
            f"{path}: format {format!r} must have {'a file' if path.is_dir() else 'a directory'}, got {kind}."
        )
    request = Request(
        path, None if root is None else Path(root), _read_class_names(classes), split, separator, check_files
    )
    listing = FORMATS[format](request)
    if not drop_repeats:
        check_duplicates(listing)
        return listing
    kept = first_rows(listing)
    return listing if len(kept) == len(listing.paths) else pick_rows(listing, kept)


def _forget_found(listing: Listing, errors: list[str]) -> None:
    """Files that a scan missed and that are there now are not known to be broken."""
    found = [row for row, error in enumerate(errors) if error == MISSING and not listing.missing[row]]
    for row in found:
        errors[row] = ""
    if found:
        log.warning(
            "%s: %d videos that the scan missed are there now (%s, ...). Scan them again to know more.",
            listing.source,
            len(found),
            listing.paths[found[0]],
        )


def has_split(
    path: str | os.PathLike[str],
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    separator: str | None = None,
) -> bool:
    """Whether a list's column `split` or a folder has a part; False for a path that is not there.

    Args:
        path: the list, or the folder.
        split: "train", "val", "test", or another name in the column.
        root: not used; for calls with the arguments of `read_manifest`.
        format: not used; as `root`.
        separator: of a list's fields; None finds it.

    Raises:
        ManifestError: for a list that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return find_part(path, split) is not None
    if not path.exists() or SPLIT_COLUMN not in read_header(path, separator=separator):
        return False
    column = read_table(path, separator=separator).column(SPLIT_COLUMN) or []
    return not {name.lower() for name in part_names(split)}.isdisjoint(value.lower() for value in set(column))


def check_same_classes(reference: Manifest, other: Manifest) -> None:
    """Refuse two manifests that number their classes differently; one without classes fits any.

    Raises:
        ManifestError: names the first class that differs.
    """
    if not reference.classes or not other.classes or reference.classes == other.classes:
        return
    mine, theirs = reference.classes, other.classes
    number = next(
        (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs))
    )
    first, second = (repr(c[number]) if number < len(c) else "not there" for c in (mine, theirs))
    raise ManifestError(
        f"classes of {reference.origin} ({len(mine)}) and {other.origin} ({len(theirs)}) must be the same in the same "
        f"order, got class {number} as {first} and as {second}. Read both with the same classes."
    )


def common_videos(first: Manifest, second: Manifest) -> list[str]:
    """Paths that two manifests share, in the second's order: training and validation should share none."""
    mine = {os.path.normpath(first.columns.path(index)) for index in range(len(first))}
    theirs = dict.fromkeys(second.columns.path(index) for index in range(len(second)))
    return [path for path in theirs if os.path.normpath(path) in mine]


def find_videos(paths: Sequence[str | os.PathLike[str]]) -> Manifest:
    """Videos without labels, for prediction.

    Args:
        paths: videos, folders of frames, other folders (with all below them), globs ("**" too), or lists, whose
            labels and segments of other columns are left aside. A video that is named twice comes once.

    Returns:
        records in the order of `paths`, without labels and classes.

    Raises:
        ManifestError: for a path that is not there, or where no video is.
    """
    found: dict[tuple[str, float | None, float | None], VideoRecord] = {}
    for given in paths:
        name = os.fspath(given)
        if not os.path.exists(name) and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise ManifestError(
                    f"{name}: a glob must match at least one video, got none. Quote it, and look at the path."
                )
            some = [record for match in matches for record in _find(match, source=name, only_videos=True)]
        else:
            some = _find(name, source=name, only_videos=False)
        if not some:
            raise ManifestError(f"{name}: there must be at least one video, got none. Is the path right?")
        for record in some:
            found.setdefault((record.path, record.start_seconds, record.end_seconds), record)
    if not found:
        raise ManifestError("paths must name at least one video, got none.")
    return Manifest(tuple(found.values()), (), ", ".join(os.fspath(path) for path in paths))


def _find(name: str, *, source: str, only_videos: bool) -> list[VideoRecord]:
    if os.path.isdir(name):
        return [
            VideoRecord(os.path.join(name, below, file) if file else name, None, source=source, missing=not there)
            for below, file, there in walk_videos(name)
        ]
    if not os.path.exists(name):
        raise ManifestError(f"{name}: the video must be there, got no such file or directory. Is the path right?")
    suffix = os.path.splitext(name)[1].lower()
    if only_videos and suffix not in VIDEO_EXTENSIONS:
        return []
    if suffix in LIST_SUFFIXES and suffix:
        return [replace(record, label=None, groups=()) for record in read_manifest(name, split="all").records]
    return [VideoRecord(name, None, source=source)]  # whatever it is called: it was asked for by name


def write_manifest(
    manifest: Manifest, path: str | os.PathLike[str], *, classes_path: str | os.PathLike[str] | None = None
) -> None:
    """Write a csv that `read_manifest` reads: path, label, segments, groups, and what is known from a scan.

    Args:
        manifest: what to write. Labels are written as names.
        path: of the csv. Paths of videos below its directory are written from there, others whole.
        classes_path: where to write the class names, one per line; without it, numbers of classes that are
            not sorted by name, or that have no video, are not kept.

    Raises:
        ManifestError: for a path with characters that are no text.
    """
    path = Path(path)
    records = manifest.columns
    with_labels = bool((records.labels >= 0).any())
    header = ["path", *(["label"] if with_labels else [])]
    header += [] if records.segments is None else ["start_seconds", "end_seconds"]
    header += [name for name, _ in records.groups]
    is_scan = records.errors is not None or records.num_frames is not None
    header += ["num_frames", "fps", "error"] if is_scan else []
    base = os.path.join(os.path.abspath(path.parent), "")

    def row(record: VideoRecord) -> list[str]:
        full = os.path.abspath(record.path)
        fields = [full.removeprefix(base)]
        if with_labels:
            fields.append("" if record.label is None else manifest.classes[record.label])
        if records.segments is not None:
            fields += ["" if x is None else repr(x) for x in (record.start_seconds, record.end_seconds)]
        fields += [value for _, value in record.groups]
        if is_scan:
            fields += [*("" if x is None else repr(x) for x in (record.num_frames, record.fps)), record.error]
        return fields

    write_table(path, [header, *(row(record) for record in records)])
    if classes_path is not None:
        write_classes(classes_path, manifest.classes)


def _read_class_names(classes: Sequence[str] | str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, (str, os.PathLike)):
        return read_classes(classes)
    return check_classes(list(classes), origin="classes")
