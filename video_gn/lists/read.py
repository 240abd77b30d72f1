"""Lists of videos with their labels: class folders, `path label` lists, csv, the official Kinetics csv.

A list is read whole, once, and checked before any training: what cannot be read is an error that names file and
line. Listed files that are missing stay in it, marked, so that a test can count them.
"""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH110, PTH112, PTH118, PTH122, PTH207

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from video_gn.decoding.tar_members import is_member
from video_gn.errors import ManifestError, SettingError
from video_gn.lists.class_folders import read_folders
from video_gn.lists.class_names import check_classes, read_numbered_classes, same_classes
from video_gn.lists.csv_lists import index_by_stem, read_kinetics, read_list
from video_gn.lists.downloads import (
    FORMS,
    RawList,
    find_files,
    match_files,
    recognize,
    refuse_folder_of_lists,
    refuse_several_labels,
)
from video_gn.lists.file_names import VIDEO_EXTENSIONS, are_missing, ending, walk_videos, warn_of_left_out
from video_gn.lists.json_lists import read_json, table_of_json
from video_gn.lists.lines import (
    JSON_SUFFIXES,
    LABEL_COLUMNS,
    LIST_SUFFIXES,
    PARQUET_SUFFIX,
    SEPARATORS,
    YOUTUBE_COLUMN,
    ListTable,
    check_suffix,
    find_header,
    read_text,
    table_of_parquet,
    table_of_text,
)
from video_gn.lists.listing import (
    ALL_PARTS,
    SPLIT_COLUMN,
    Listing,
    ask_about_numbers,
    ask_about_parts,
    ask_about_slips,
    check_repeats,
    rows_of_part,
    warn_of_other_parts,
)
from video_gn.lists.manifest import Manifest
from video_gn.lists.part_names import PARTS, find_parts, is_part, part_folder, part_of
from video_gn.lists.records import Records, TextColumn, VideoRecord
from video_gn.lists.scan_columns import MISSING
from video_gn.lists.tar_lists import find_tars, read_tars, tar_records
from video_gn.shown import count

log = logging.getLogger(__name__)

FORMATS = ("folders", "list", *FORMS, "webdataset")

ClassNames = Sequence[str] | str | os.PathLike[str] | None


class VideoList:
    """A list of videos, or the folder that holds them, read once; manifests of its parts are cut from it.

    Formats:
        folders: `<class>/.../<video>`, also below `train/`, `val/`, `test/`, or what else means these (`Training/`,
            `val_set/`, `dev/`). Classes are sorted by name.
            A folder of numbered pictures (see `video_gn.decoding`) is a video, here and in lists.
        list: `path label` lines with one separator (space, comma, tab or semicolon); the last field is
            the label; or mmaction2's `folder num_frames label`. Or a csv with a header: `path`, and optionally
            `label`, `start_seconds`, `end_seconds`, `split`, and other columns to group by. Labels are
            names or numbers from 0. Or parquet with these columns. A list that a scan wrote also says which videos
            are broken.
            Or json, a list of objects with these keys, or one object a line.
        kinetics: the official csv over `<youtube_id>_<start>_<end>.mp4` files, flat or in class folders; also without
            its header, or as json.
        ucf101, hmdb51, ssv2, activitynet, diving48, jester: as these are downloaded; see the page of `video_gn.data`.
        webdataset: a tar, a folder of tars or a pattern of them; see `video_gn.lists.tar_lists`.

    Args:
        path: the list, or the folder; or a glob of lists for data sets with one for each class (hmdb51).
        root: directory that relative paths start from; None is the list's own.
        format: "auto", which tells the form by what the list holds, or one of `FORMATS`.
        separator: separator of a list's fields; None detects it.
        check_files: find out which files are missing; if False, none is marked as missing.

    Raises:
        ManifestError: for what cannot be read, is empty or does not fit; it names file and lines.
        ValueError: for an unknown format or separator.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        format: str = "auto",
        separator: str | None = None,
        check_files: bool = True,
    ) -> None:
        path = Path(path)
        if format != "auto" and format not in FORMATS:
            raise SettingError(f"format must be one of {['auto', *FORMATS]}, got {format!r}.")
        if separator is not None and separator not in SEPARATORS:
            raise SettingError(f"separator must be one of {list(SEPARATORS)}, got {separator!r}. None finds it.")
        tars = find_tars(path) if format in ("auto", "webdataset") else []
        files = () if tars or path.exists() else match_files(path)
        if not (tars or files or path.exists()):
            raise ManifestError(
                f"{path}: the list or folder must be there, got no such file or directory. Is the path right?"
            )
        if root is not None and not Path(root).is_dir():
            raise ManifestError(
                f"{root}: root must be a directory, got something else. It is where relative paths start."
            )
        if format == "webdataset" and not tars:
            raise ManifestError(f"{path}: format 'webdataset' must have a tar, or tars in a folder, got none.")
        is_folder = path.is_dir() and not tars
        if is_folder:
            refuse_folder_of_lists(path)
        if format not in ("auto", "webdataset") and is_folder != (format == "folders"):
            kinds = ("a file", "a directory")
            raise ManifestError(f"{path}: format {format!r} must have {kinds[not is_folder]}, got {kinds[is_folder]}.")
        if (is_folder or tars) and (separator is not None or root is not None):
            raise SettingError(
                f"separator and root must be None for class folders and tars, got {path}. Leave them out."
            )
        self.path = path
        self._base = path.parent if root is None else Path(root)
        self._table: ListTable | None = None
        self._format = "folders"
        if tars:
            self._table, self._base = read_tars(tars, path)
            self._format = "webdataset"
        elif not is_folder:
            self._format, self._table = _read_table(path, files, format, separator, self._base)
            if self._table.are_names and check_files:
                self._table.columns["path"] = find_files(self._table.columns["path"], self._base)
        self._check_files = check_files
        self._has_warned_of_parts = False
        self._kept: tuple[tuple[str, ...] | None, Listing] | None = None  # the classes that were given, all rows

    def has_part(self, split: str) -> bool:
        """Whether the column `split`, or the folder, has a part: "train", "val", "test" or another name."""
        if self._table is None:
            return part_folder(self.path, self._folders, split) is not None
        return any(is_part(name, split) for name in set(self._table.column(SPLIT_COLUMN) or ()))

    @property
    def parts(self) -> list[str]:
        """Names of its parts: "train", "val" and "test" as far as it has them, then others; empty for none."""
        if self._table is None:
            return list(self._folders)
        names = sorted(set(self._table.column(SPLIT_COLUMN) or ()))
        known = {part_of(name) for name in names}
        return [*(part for part in PARTS if part in known), *(name for name in names if part_of(name) is None)]

    @cached_property
    def _folders(self) -> dict[str, Path]:
        return find_parts(self.path)

    def manifest(self, split: str | None = None, *, classes: ClassNames = None, are_lent: bool = False) -> Manifest:
        """A part's records in the order of the list; of folders in the order of the names.

        Args:
            split: "train", "val", "test", or another name in a csv's column `split`; "all" for all; None for a list
                without parts.
            classes: names by number, or a file of them (`read_numbered_classes`), which may number them from 1 as
                the list does; None takes them from all rows of the list. Spaces and underscores in names are equal.
            are_lent: whether `classes` are those of another list or of a checkpoint, which may number theirs otherwise.
        """
        listing, table = self.listing(split, classes=classes), self._table
        # A list that comes with names of its numbers says what they mean.
        if are_lent and table is not None and not same_classes(table.classes or (), listing.classes):
            ask_about_numbers(listing, table.column(*LABEL_COLUMNS) or ())
        return _to_manifest(listing, split, check_files=self._check_files)

    def manifests(self) -> dict[str, Manifest]:
        """A manifest of each part by its name, which number the classes alike; of a list without parts one, by ""."""
        whole = self.listing(ALL_PARTS)
        taken = {name: whole.take(rows_of_part(whole, name)) for name in self.parts} or {"": whole}
        return {name: _to_manifest(rows, name or None, check_files=self._check_files) for name, rows in taken.items()}

    def listing(self, split: str | None = None, *, classes: ClassNames = None) -> Listing:
        """The columns of a part, with each row's part, which a manifest does not keep; see `manifest`."""
        names, first = _read_class_names(classes)
        if self._table is None:
            found = read_folders(self.path, names, split, parts=self._folders)
            ask_about_parts(found)
            if names is None:
                ask_about_slips(found)
            return found
        rows = self._all_rows(self._table, names, first)
        part = rows.take(rows_of_part(rows, split))
        if split in PARTS and not self._has_warned_of_parts:
            self._has_warned_of_parts = True
            warn_of_other_parts(rows)
        if self._check_files and self._format not in ("kinetics", "webdataset"):
            part.missing = are_missing(part.paths)
        return part

    def _all_rows(self, table: ListTable, classes: tuple[str, ...] | None, first: int | None) -> Listing:
        """The rows of all parts, kept for the next part with the same classes."""
        if self._kept is not None:
            given, rows = self._kept
            if classes == given or classes == rows.classes:
                return rows
        if self._format == "kinetics":
            rows = read_kinetics(table, self._base, classes, self._index)
        else:
            rows = read_list(table, self._base, classes, first=first)
            ask_about_parts(rows)
        if classes is None:
            ask_about_slips(rows)
        self._kept = classes, rows
        return rows

    @cached_property
    def _index(self) -> dict[str, tuple[str, ...]] | None:
        return index_by_stem(self._base) if self._check_files else None


def _read_table(
    path: Path, files: tuple[Path, ...], format: str, separator: str | None, base: Path
) -> tuple[str, ListTable]:
    """A list's format and its columns; `files` are those that a glob matches."""
    for file in files or (path,):
        check_suffix(file)
    suffix = path.suffix.lower()
    if suffix == PARQUET_SUFFIX:
        return _by_header(table_of_parquet(path), format)
    if suffix in JSON_SUFFIXES:
        content, places = read_json(path)
        raw = RawList(path, content=content)
    else:
        numbers, lines = read_text(files[0] if files else path)
        raw = RawList(path, numbers, lines, files=files)
        if find_header(lines[0], separator)[1] and not files:
            return _by_header(table_of_text(path, numbers, lines, separator=separator, root=base), format)
    if format == "auto" and separator is None:
        refuse_several_labels(raw)
        format = recognize(raw) or "list"
        if format != "list":
            log.info("%s: read as a list of %s; data.source.format names another form", path, format)
    if files and format != "hmdb51":
        raise ManifestError(f"{path}: a list must be one file, got a glob of {len(files)}. Give one of them.")
    if format in FORMS:
        return format, FORMS[format].read(raw)
    if suffix in JSON_SUFFIXES:
        return "list", table_of_json(path, content, places)
    return "list", table_of_text(path, numbers, lines, separator=separator, root=base)


def _by_header(table: ListTable, format: str) -> tuple[str, ListTable]:
    """A list with a header is a Kinetics csv or one with paths; other forms have none."""
    if format == "auto":
        format = "kinetics" if YOUTUBE_COLUMN in table.header and not table.is_scan else "list"
    if format not in ("kinetics", "list"):
        raise ManifestError(
            f"{table.path}:1: a list of format {format!r} must have no header, got {table.header}. Leave "
            "data.source.format out, or name another."
        )
    return format, table


def _to_manifest(listing: Listing, split: str | None, *, check_files: bool) -> Manifest:
    check_repeats(listing)
    errors = listing.errors
    if errors is not None and check_files:
        errors = _without_found(listing, errors)
    manifest = Manifest(
        Records(
            listing.paths,
            listing.labels,
            segments=listing.segments,
            sources=TextColumn(np.zeros(len(listing.paths), dtype=np.int32), (listing.source,)),
            lines=listing.lines,
            groups=tuple((name, TextColumn.from_strings(column)) for name, column in listing.groups.items()),
            missing=listing.missing,
            errors=None if errors is None else TextColumn.from_strings(errors),
            num_frames=listing.num_frames,
            fps=listing.fps,
        ),
        listing.classes,
        listing.source if split is None else f"{listing.source} ({split})",
    )
    _log_manifest(manifest)
    return manifest


def _log_manifest(manifest: Manifest) -> None:
    classes = count(len(manifest.classes), "class", "classes")
    log.info("%s: %s of %s", manifest.origin, count(len(manifest), "video"), classes)
    columns = manifest.columns
    if manifest.missing:
        counts = (manifest.origin, manifest.missing, len(manifest))
        first = columns.path(int(np.argmax(columns.missing)))
        log.warning("%s: %d of %d listed videos are not there (%s, ...)", *counts, first)
    if manifest.broken:
        counts = (manifest.origin, manifest.broken, len(manifest))
        broken = columns[int(np.argmax(columns.broken))]
        text = "%s: %d of %d listed videos are known to be broken (%s: %s, ...)"
        log.warning(text, *counts, broken.path, broken.error)


def _without_found(listing: Listing, errors: list[str]) -> list[str]:
    """What a scan found wrong, without files that were missing at the scan and exist now."""
    found = [row for row, error in enumerate(errors) if error == MISSING and not listing.missing[row]]
    if not found:
        return errors
    log.warning(
        "%s: %s there now (%s, ...). Scan again to know more.",
        listing.source,
        count(len(found), "video that was missing at the scan is", "videos that were missing at the scan are"),
        listing.paths[found[0]],
    )
    errors = list(errors)
    for row in found:
        errors[row] = ""
    return errors


def _read_class_names(classes: ClassNames) -> tuple[tuple[str, ...] | None, int | None]:
    """Names by number, and the number of the first one if a file says it."""
    if classes is None:
        return None, None
    if isinstance(classes, (str, os.PathLike)):
        return read_numbered_classes(classes)
    return check_classes(list(classes), origin="classes"), None


def read_manifest(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    classes: ClassNames = None,
    split: str | None = None,
    separator: str | None = None,
    check_files: bool = True,
) -> Manifest:
    """Read one part of a list of videos, or of the folder that holds them.

    Arguments and errors are those of `VideoList`, which reads several parts, and of its `manifest`.
    """
    videos = VideoList(path, root=root, format=format, separator=separator, check_files=check_files)
    listing = videos.listing(split, classes=classes)
    del videos  # the list's text, which takes more memory than the manifest
    return _to_manifest(listing, split, check_files=check_files)


def find_videos(paths: Sequence[str | os.PathLike[str]]) -> Manifest:
    """Videos without labels, for prediction.

    Args:
        paths: videos, frame folders, other folders (with all videos below), globs ("**" too), tars and patterns of
            them, or lists, of which labels and groups are ignored. A video that is named twice comes once.

    Returns:
        records in the order of `paths`, without labels and classes.

    Raises:
        ManifestError: for a path that does not exist or has no video.
    """
    found: dict[tuple[str, float | None, float | None], VideoRecord] = {}
    for given in paths:
        name = os.fspath(given)
        left_out: Counter[str] = Counter()
        if not os.path.exists(name) and glob.has_magic(name) and not find_tars(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise ManifestError(
                    f"{name}: a glob must match at least one video, got none. Quote it, and look at the path."
                )
            counts = None if "**" in name else left_out  # "**" has a folder and its files too
            some = [r for match in matches for r in _find(match, source=name, only_videos=True, left_out=counts)]
        else:
            some = _find(name, source=name, only_videos=False, left_out=left_out)
        warn_of_left_out(name, left_out)
        if not some:
            raise ManifestError(f"{name}: there must be at least one video, got none. Is the path right?")
        for record in some:
            found.setdefault((record.path, record.start_seconds, record.end_seconds), record)
    if not found:
        raise ManifestError("paths must name at least one video, got none.")
    return Manifest(tuple(found.values()), (), ", ".join(os.fspath(path) for path in paths))


def _find(name: str, *, source: str, only_videos: bool, left_out: Counter[str] | None) -> list[VideoRecord]:
    """The videos of one path; with only_videos, files that are neither a video nor a tar are passed over."""
    is_folder = os.path.isdir(name)
    tars = find_tars(name) if not only_videos or is_folder or name.endswith(".tar") else []
    if tars:
        return tar_records(tars, source)
    if is_folder:
        return [
            VideoRecord(os.path.join(name, below, file) if file else name, None, source=source, missing=not there)
            for below, file, there in walk_videos(name, left_out=left_out)
        ]
    if is_member(name):
        return [VideoRecord(name, None, source=source)]
    if not os.path.exists(name):
        raise ManifestError(f"{name}: the video must be there, got no such file or directory. Is the path right?")
    suffix = os.path.splitext(name)[1].lower()
    if only_videos and suffix not in VIDEO_EXTENSIONS:
        if left_out is not None:
            left_out[ending(name)] += 1
        return []
    if suffix in LIST_SUFFIXES and suffix:
        return [replace(record, label=None, groups=()) for record in read_manifest(name, split="all").records]
    return [VideoRecord(name, None, source=source)]  # a file that is named counts as a video
