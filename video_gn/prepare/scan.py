"""Probes every file of a list once, and writes a manifest with its facts, or why it cannot be read.

Files are probed in processes that may crash or hang without harm to the scan. Facts go into a journal beside the
target, from which a killed scan resumes. They are kept as columns, and the manifest has the order of the list, in
whatever order files were probed.
"""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH100, PTH109, PTH118

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from video_gn.checks import check_integer
from video_gn.errors import ManifestError, SettingError
from video_gn.files import whole_file
from video_gn.journal import Journal
from video_gn.lists.csv_lists import read_list
from video_gn.lists.downloads import match_files
from video_gn.lists.file_names import holds_frame_folders, list_dir
from video_gn.lists.lines import LIST_SUFFIXES
from video_gn.lists.listing import Listing, drop_repeats
from video_gn.lists.manifest import Manifest
from video_gn.lists.parquet import require_pyarrow, write_parquet
from video_gn.lists.part_names import find_parts
from video_gn.lists.read import VideoList, find_videos
from video_gn.lists.records import TextColumn
from video_gn.lists.scan_columns import SCAN_COLUMNS, FactColumns, FileFacts
from video_gn.lists.tar_lists import find_tars, read_tars
from video_gn.parts import Part
from video_gn.prepare.probe import Depth, file_state, probe
from video_gn.prepare.scan_journal import finish_part, load, merge_parts, open_journal
from video_gn.prepare.scan_summary import ScanSummary, summarize
from video_gn.processes import Lost, num_cores, run_tasks

__all__ = ["TARGET_SUFFIXES", "ScanSummary", "scan"]

log = logging.getLogger(__name__)

TARGET_SUFFIXES = (".csv", ".parquet")
_TIMEOUT_SECONDS = {"headers": 60.0, "packets": 60.0, "full": 600.0}
_ROWS_AT_A_TIME = 8192
_TASKS_AT_ONCE = 32

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Manifest


@dataclass
class _Rows:
    """A list as columns: each row is a file, or a segment of one."""

    files: TextColumn
    labels: np.ndarray  # int32 (n,), -1 for none
    classes: tuple[str, ...]
    segments: np.ndarray | None  # float64 (n, 2), NaN for none; None if no row has one
    texts: dict[str, TextColumn]  # other columns of the list, such as "split"


def scan(
    paths: Paths,
    target: str | os.PathLike[str],
    *,
    full: bool = False,
    headers_only: bool = False,
    num_workers: int | None = None,
    timeout_seconds: float | None = None,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    overwrite: bool = False,
    part: Part | None = None,
    merge: bool = False,
    progress: Callable[[Iterable[None]], Iterable[None]] | None = None,
) -> ScanSummary:
    """Probe all files of a list and write their facts as a manifest.

    The target has the list's columns, and `num_frames`, `fps`, `duration_seconds`, `width`, `height`, `codec`,
    `rotation`, `key_frame_interval`, `size_bytes`, and `error`, empty if the video can be read. Paths below the
    target's directory are written relative to it, others absolute. The same call resumes a killed scan.

    Args:
        paths: List, folder of classes, official Kinetics csv, or manifest; or several videos, folders, globs and
            lists, whose labels are ignored; see `read_manifest` and `find_videos`.
        target: File to write, a .csv or .parquet.
        full: Decode every frame, instead of counting packets.
        headers_only: Believe the header, instead of counting packets: about twice as fast, no key frame intervals.
        num_workers: Processes, at least 1; None takes one for each core of this process.
        timeout_seconds: Time limit for one file; None takes a minute, or ten with `full`.
        root: Directory that relative paths of a list start from; None takes the list's own.
        format: See `read_manifest`.
        overwrite: Replace an existing target, or a part's results.
        part: Part of the files to probe, of which the results go to a file beside the target; the summary is of them.
        merge: Write the target from the results of all parts; nothing is probed.
        progress: Called with an iterable that has one item for each file, and a length; returns it with a bar around.

    Raises:
        ManifestError: for a list that cannot be read, a target that exists, or a path that cannot be written.
        ConfigError: for parts that do not fit together, or are not finished; see `video_gn.prepare.scan_journal`.
        RunError: if another scan is writing the target, or processes cannot be started.
        ValueError: for arguments that do not fit.
    """
    if full and headers_only:
        raise SettingError("full and headers_only must not both be set, got both. Choose one.")
    num_workers = num_cores() if num_workers is None else check_integer("num_workers", num_workers)
    depth: Depth = "full" if full else "headers" if headers_only else "packets"
    timeout_seconds = _TIMEOUT_SECONDS[depth] if timeout_seconds is None else timeout_seconds
    if not timeout_seconds > 0:
        raise SettingError(f"timeout_seconds must be above 0, got {timeout_seconds!r}. Leave it out for the default.")
    target = Path(os.path.abspath(target))
    if part is not None and merge:
        raise SettingError("part and merge must not both be set, got both. Merge when all parts are done.")
    _check_target(target, overwrite=overwrite or part is not None)
    rows = _read_rows(paths, root=root, format=format)
    files = rows.files.values
    names = _written_paths(files, target)
    facts = FactColumns(len(files))
    keys = [os.path.join(os.getcwd(), path) for path in files]
    if merge:
        merge_parts(target, depth, keys, facts)
        _write(target, rows, names, facts)
        return _summarize(target, rows, facts, 0)
    with open_journal(target, depth, part) as journal:
        if part is not None and overwrite:
            journal.start()
        else:
            load(journal, keys, facts)
        places = range(len(keys)) if part is None else range(part.index, len(keys), part.count)
        steps = _Steps(keys, places, facts, journal, depth, num_workers, timeout_seconds)
        for _ in progress(steps) if progress else steps:
            pass
        if part is not None:
            finish_part(journal, keys)
            return _summarize(journal.path, rows, facts, steps.num_probed, part)
        _write(target, rows, names, facts)
        journal.remove()
    return _summarize(target, rows, facts, steps.num_probed)


def _summarize(target: Path, rows: _Rows, facts: FactColumns, num_probed: int, part: Part | None = None) -> ScanSummary:
    """The summary of all rows, or of those whose files are a part's."""
    files = rows.files.codes
    mine = slice(None) if part is None else files % part.count == part.index
    splits = rows.texts.get("split")
    return summarize(
        target,
        facts,
        files[mine],
        labels=rows.labels[mine],
        classes=rows.classes,
        splits=None if splits is None else TextColumn(splits.codes[mine], splits.values),
        num_probed=num_probed,
    )


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.suffix.lower() not in TARGET_SUFFIXES:
        raise SettingError(f"target must end in one of {list(TARGET_SUFFIXES)}, got {str(target)!r}. Choose one.")
    if target.suffix.lower() == ".parquet":
        require_pyarrow(target)
    if target.is_dir():
        raise ManifestError(f"{target}: the target must be a file, got a directory. Name the file.")
    if target.exists() and not overwrite:
        raise ManifestError(f"{target} exists. Choose another target, or pass overwrite.")


# ---- lists -----------------------------------------------------------------------------------


def _read_rows(paths: Paths, *, root: str | os.PathLike[str] | None, format: str) -> _Rows:
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    if isinstance(paths, Manifest):
        return _from_manifest(paths)
    if len(paths) == 1 and _has_rows(Path(paths[0])):
        return _from_listing(VideoList(paths[0], root=root, format=format).listing("all"))
    if root is not None or format != "auto":
        raise SettingError(
            "root and format must be left out for videos and folders, got one of them. They are for lists."
        )
    names = [os.fspath(path) for path in paths]
    if len(names) > 1 and all(find_tars(name) == [name] for name in names):  # a pattern that the shell has expanded
        return _from_listing(read_list(*read_tars(names, Path(os.path.commonpath(names))), None))
    return _from_manifest(find_videos(paths))


def _has_rows(path: Path) -> bool:
    """Whether it is a list, tars or a folder of classes, not a video, a frame folder or a folder of loose videos."""
    if find_tars(path):
        return True
    if not path.exists():  # a glob of lists, one for each class
        files = match_files(path)
        return bool(files) and all(file.suffix and file.suffix.lower() in LIST_SUFFIXES for file in files)
    if not path.is_dir():
        return path.suffix.lower() in LIST_SUFFIXES
    folders, videos, _ = list_dir(path)
    is_loose = bool(videos) or not folders or holds_frame_folders(path, folders)
    return not is_loose or bool(find_parts(path))


def _from_listing(listing: Listing) -> _Rows:
    listing = drop_repeats(listing)
    files = TextColumn.from_strings(listing.paths)
    texts = {} if listing.splits is None else {"split": listing.splits}
    texts |= {name: column for name, column in listing.groups.items() if name not in SCAN_COLUMNS}
    replaced = [name for name in listing.groups if name in SCAN_COLUMNS]
    if replaced:
        log.warning("%s: the scan replaces its columns %s", listing.source, replaced)
    columns = {name: TextColumn.from_strings(column) for name, column in texts.items()}
    return _Rows(files, listing.labels, listing.classes, listing.segments, columns)


def _from_manifest(manifest: Manifest) -> _Rows:
    records = manifest.columns
    files = TextColumn.from_strings(records.paths())
    texts = {name: column for name, column in records.groups if name not in SCAN_COLUMNS}
    return _Rows(files, records.labels, manifest.classes, records.segments, texts)


# ---- probing ---------------------------------------------------------------------------------


# Path, depth, and what is known of the file: its size and time of change, or two None.
_Task = tuple[str, Depth, int | None, int | None]


def probe_if_changed(task: _Task, beat: Callable[[], None]) -> FileFacts | None:
    """Probe a file, in a worker; None where it is known and unchanged. No beat: the limit is for the whole file."""
    path, depth, size, mtime = task
    if mtime is not None and (size, mtime) == file_state(path):
        return None
    return probe(path, depth)


@dataclass
class _Steps:
    """Iterable that probes the files at some places, one item for each; it has a length, for a progress bar."""

    keys: Sequence[str]
    places: Sequence[int]
    facts: FactColumns
    journal: Journal
    depth: Depth
    num_workers: int
    timeout_seconds: float
    num_probed: int = 0

    def __len__(self) -> int:
        return len(self.places)

    def _tasks(self) -> Iterator[_Task]:
        sizes, times, done = self.facts.numbers["size_bytes"], self.facts.numbers["mtime_ns"], self.facts.is_done
        for place in self.places:
            known = (int(sizes[place]), int(times[place])) if done[place] and times[place] >= 0 else (None, None)
            yield self.keys[place], self.depth, *known

    def __iter__(self) -> Iterator[None]:
        places = {self.keys[place]: place for place in self.places}
        results = run_tasks(
            self._tasks(),
            WORK,
            num_workers=min(self.num_workers, len(self.places)),
            stall_seconds=self.timeout_seconds,
            tasks_at_once=_TASKS_AT_ONCE,
            preload=__name__,
        )
        for (key, *_), found in results:
            if isinstance(found, Lost):
                size, mtime = file_state(key)
                found = FileFacts(size_bytes=size, mtime_ns=mtime, error=found.reason)
                log.warning("%s: %s", key, found.error)
            if found is not None:
                self.facts.set(places[key], found)
                self.journal.add([key, *found])
                self.num_probed += 1
            yield None


WORK = probe_if_changed


# ---- writing ---------------------------------------------------------------------------------


def _written_paths(files: Sequence[str], target: Path) -> list[str]:
    """Paths as the target writes them: relative to its directory for files below it."""
    here, base = os.path.join(os.getcwd(), ""), os.path.join(target.parent, "")
    written = []
    for path in files:
        full = os.path.join(here, path)
        while "/./" in full:
            full = full.replace("/./", "/")
        # ".." is not resolved: behind a link it does not lead where the text says.
        is_below = full.startswith(base) and "/../" not in full
        name = full[len(base) :] if is_below else full
        # A path that begins with a space or "#" would not be read back as written.
        written.append(f"./{name}" if is_below and (name[0].isspace() or name[0] == "#") else name)
    for name in written:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ManifestError(f"{target}: a path must be text, got {name!r}. Rename the file.") from error
        if "\n" in name or "\r" in name or "\0" in name:
            raise ManifestError(f"{target}: a path must be one line, got {name!r}. Rename the file.")
    return written


def _columns(rows: _Rows, names: Sequence[str], facts: FactColumns) -> tuple[dict[str, type], Iterator[list[Any]]]:
    """Names and types of the target's columns, and their values, some rows at a time."""
    has_labels = bool((rows.labels >= 0).any())
    kinds: dict[str, type] = {"path": str, **({"label": str} if has_labels else {})}
    kinds |= {} if rows.segments is None else {"start_seconds": float, "end_seconds": float}
    kinds |= dict.fromkeys(rows.texts, str)
    floats = {name for name, column in facts.numbers.items() if column.dtype.kind == "f"}
    kinds |= {name: str if name not in facts.numbers else float if name in floats else int for name in SCAN_COLUMNS}

    def batches() -> Iterator[list[Any]]:
        for first in range(0, len(rows.labels), _ROWS_AT_A_TIME):
            some = slice(first, first + _ROWS_AT_A_TIME)
            files = rows.files.codes[some]
            columns: list[list[Any]] = [[names[file] for file in files.tolist()]]
            if has_labels:
                columns.append([None if n < 0 else rows.classes[n] for n in rows.labels[some].tolist()])
            if rows.segments is not None:
                times = np.where(np.isnan(rows.segments[some]), None, rows.segments[some])  # type: ignore[call-overload]
                columns += [times[:, 0].tolist(), times[:, 1].tolist()]
            columns += [[text.values[code] for code in text.codes[some].tolist()] for text in rows.texts.values()]
            yield columns + [facts.column(name, files) for name in SCAN_COLUMNS]

    return kinds, batches()


def _write(target: Path, rows: _Rows, names: Sequence[str], facts: FactColumns) -> None:
    kinds, batches = _columns(rows, names, facts)
    if target.suffix.lower() == ".parquet":
        write_parquet(target, kinds, batches)
        return
    with whole_file(target) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(kinds)
        for columns in batches:
            writer.writerows(zip(*columns, strict=True))
