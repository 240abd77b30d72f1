"""Prepares videos for training: cut to their segments, scaled down, and encoded so that random clips decode fast.

    from video_gn.lists.read import read_manifest
    from video_gn.prepare.prepare import prepare

    summary = prepare({split: read_manifest("k400.csv", root="raw", split=split) for split in ("train", "val")}, "k400")

The same call resumes a run that was stopped in any way.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from video_gn.checks import check_integer
from video_gn.decoding.tar_members import is_member, join_path, read_index, split_path
from video_gn.errors import DecodeError, RunError, SettingError
from video_gn.files import whole_path
from video_gn.lists.manifest import Manifest, check_same_classes, write_manifest
from video_gn.lists.records import VideoRecord
from video_gn.prepare.encode import EncodeSettings, encode
from video_gn.prepare.made_files import MadeFiles, add_note, announce, claimed, key_of
from video_gn.prepare.names import output_names, sample_keys
from video_gn.prepare.probe import file_state
from video_gn.prepare.tar_shards import ShardVideo, describe, publish_shard, shard_name, write_failures
from video_gn.processes import Lost, num_cores, run_tasks

log = logging.getLogger(__name__)

# Measured on ten-second clips of Kinetics at 340 x 256; see the table in `video_gn.prepare.encode`.
KEY_FRAME_INTERVAL = 32
CRF = 20.0
# A frame takes milliseconds; only a hang takes so long for one.
_STALL_SECONDS = 120.0


@dataclass(frozen=True)
class PrepareSummary:
    """What `prepare` did."""

    out: Path
    manifest_path: Path  # list of the prepared videos, for training and testing
    failed_path: Path  # list of the others
    num_listed: int
    num_new: int  # videos made now
    num_kept: int  # videos made by an earlier call
    num_shards: int  # 0 for loose files
    num_bytes: int  # of all prepared videos
    num_source_bytes: int  # of their source files, each counted once
    failed: tuple[tuple[str, str], ...]  # (path, reason) of each video that was not prepared

    def text(self) -> str:
        """A few lines for a person."""
        shards = f" in {self.num_shards} shards" if self.num_shards else ""
        lines = [
            f"{self.out}: {self.num_new + self.num_kept} of {self.num_listed} videos{shards}, {self.num_new} of them "
            f"new, {self.num_bytes / 1e6:.1f} MB from {self.num_source_bytes / 1e6:.1f} MB",
            f"list: {self.manifest_path}",
        ]
        if self.failed:
            lines.append(f"{len(self.failed)} failed: {self.failed_path}")
            lines += [f"  {path}: {reason}" for path, reason in self.failed[:5]]
            lines += [f"  and {len(self.failed) - 5} more"] if len(self.failed) > 5 else []
        return "\n".join(lines)


def prepare(
    manifest: Manifest | Mapping[str, Manifest],
    out_dir: str | os.PathLike[str],
    *,
    short_side_px: int = 320,
    key_frame_interval: int = KEY_FRAME_INTERVAL,
    crf: float = CRF,
    num_workers: int | None = None,
    shards: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PrepareSummary:
    """Write `out_dir/[split/]class/name.mp4` for each record, and `out_dir/manifest.csv`.

    The list has the order of `manifest`, and the files have the same bytes for any number of workers. The next call
    keeps the files that a stopped one has finished, unless their source or the settings have changed. Videos that
    cannot be read, crash a worker or hang are named in `out_dir/failed.csv` and left out; the next call tries crashes
    and hangs again, unless their shard exists.

    Args:
        manifest: Videos to prepare; or a manifest for each split, whose names become folders and a column `split`.
        out_dir: Output directory, for the files, `classes.txt` and `failed.csv`.
        short_side_px: Short side that larger videos are scaled down to, even.
        key_frame_interval: Frames from one key frame to the next.
        crf: x264's quality; lower is better and larger.
        num_workers: Processes; None takes the number of cores. A script must guard its main part with
            `if __name__ == "__main__"`.
        shards: Videos in a tar shard; None leaves loose files. Videos that fail leave a shard with fewer.
        overwrite: Make existing files anew.
        progress: Called with (videos done or failed, videos).

    Raises:
        ValueError: for a setting out of its range, or a video that is listed twice.
        ManifestError: for splits whose classes differ, or names that are not text.
        RunError: if another run is writing to `out_dir`, workers cannot start, no video could be prepared, or
            nothing can be written.
    """
    settings = EncodeSettings(short_side_px, key_frame_interval, float(crf))
    num_workers = num_cores() if num_workers is None else check_integer("num_workers", num_workers)
    if shards is not None:
        check_integer("shards", shards)
    parts = dict(manifest) if isinstance(manifest, Mapping) else {"": manifest}
    out = Path(out_dir)
    with claimed(out):
        run = _Run(out, parts, settings, shards)
        run.work(num_workers, overwrite=overwrite, progress=progress)
        return run.finish()


# ---- one file ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A record and the file to make of it."""

    source: str
    segment: tuple[float | None, float | None]  # seconds, None for the video's own
    name: str  # file to make, below the directory
    key: str  # the same for the same source, segment and settings


@dataclass
class _Chunk:
    """Tasks whose files go into one shard."""

    shard: str | None  # None for a single task whose file stays loose
    places: list[int]  # numbers of the tasks
    key: str = ""  # the same for the same tasks and labels
    num_left: int = 0  # tasks that are still to be done


def _make(task: _Task, beat: Callable[[], None], *, out: Path, settings: EncodeSettings) -> dict[str, Any]:
    """Make one file, in a worker; its note, with the reason as "failed" if the video cannot be read."""
    note: dict[str, Any] = {"name": task.name, "key": task.key}
    try:
        with whole_path(out / task.name) as written:
            done = encode(task.source, written, settings, segment=task.segment, on_frame=beat)
            note |= {"bytes": done.num_bytes, "num_frames": done.num_frames, "size": [done.width, done.height]}
            announce(out, note)
    except DecodeError as error:
        note["failed"] = error.reason
        add_note(out, note)
    return note


def _state_of(path: str) -> tuple[int, int]:
    """Size and time of a file, of a frame folder's pictures, or of a member's shard; -1 if it is missing."""
    size, mtime = file_state(split_path(path)[0] if is_member(path) else path)
    return (-1, -1) if size is None or mtime is None else (size, mtime)


# ---- a whole list ------------------------------------------------------------------------------


class _Run:
    """One call of `prepare`, in a claimed directory; `parts` are manifests by split, by "" without splits."""

    def __init__(self, out: Path, parts: Mapping[str, Manifest], settings: EncodeSettings, shards: int | None) -> None:
        if not any(map(len, parts.values())):
            raise SettingError("manifest must have at least one video, got none.")
        first, *_ = parts.values()
        for split, part in parts.items():
            if split and not re.fullmatch(r"\w[\w-]*", split):
                raise SettingError(f"manifest: a split must be a word, got {split!r}. It becomes a folder's name.")
            check_same_classes(first, part)
        self.out = out
        self.classes = next((part.classes for part in parts.values() if part.classes), ())
        self.made = MadeFiles(out)
        self.records: list[VideoRecord] = []
        self.splits: list[str] = []
        self.tasks: list[_Task] = []
        self.chunks: list[_Chunk] = []
        self.source_bytes: dict[str, int] = {}
        self.new: set[int] = set()
        self.failed: dict[int, str] = {}
        how = settings.fingerprint()
        for split, part in parts.items():
            self._plan(split, part, how, shards)
        self.settings = settings

    def _plan(self, split: str, part: Manifest, how: str, shards: int | None) -> None:
        begin = len(self.tasks)
        records = list(part.records)
        for record, name in zip(records, output_names(records, part.classes, below=split), strict=True):
            size, mtime = _state_of(record.path)
            self.source_bytes[record.path] = max(size, 0)
            segment = (record.start_seconds, record.end_seconds)
            path = os.path.abspath(record.path)  # noqa: PTH100  # a member of a shard is no path
            key = key_of([how, path, size, mtime, segment])
            self.tasks.append(_Task(record.path, segment, name, key))
        self.records += records
        self.splits += [split] * len(records)
        if shards is None:
            self.chunks += [_Chunk(None, [place]) for place in range(begin, len(self.tasks))]
            return
        for number, start in enumerate(range(begin, len(self.tasks), shards)):
            places = list(range(start, min(start + shards, len(self.tasks))))
            about = [[self.tasks[p].name, self.tasks[p].key, self._about(p), self.records[p].label] for p in places]
            self.chunks.append(_Chunk(shard_name(split or "videos", number), places, key_of(about)))

    # ---- work ----

    def work(self, num_workers: int, *, overwrite: bool, progress: Callable[[int, int], None] | None) -> None:
        """Make the files that are missing."""
        todo: dict[str, tuple[int, _Chunk]] = {}
        for chunk in self.chunks:
            if not overwrite and self._is_packed(chunk):
                continue
            places = [place for place in chunk.places if overwrite or not self._is_made(place)]
            todo |= {self.tasks[place].name: (place, chunk) for place in places}
            chunk.num_left = len(places)
            if not places:
                self._pack(chunk)
        num_kept = len(self.tasks) - len(todo)
        if progress is not None:
            progress(num_kept, len(self.tasks))
        results = run_tasks(
            [self.tasks[place] for place, _ in todo.values()],
            partial(_make, out=self.out, settings=self.settings),
            num_workers=min(num_workers, max(1, len(todo))),
            stall_seconds=_STALL_SECONDS,
            preload=__name__,
        )
        for num_done, (task, result) in enumerate(results, num_kept + 1):
            place, chunk = todo[task.name]
            self._take(place, result)
            chunk.num_left -= 1
            if not chunk.num_left:
                self._pack(chunk)
            if progress is not None:
                progress(num_done, len(self.tasks))

    def _is_made(self, place: int) -> bool:
        task = self.tasks[place]
        entry = self.made.find(task.name, task.key)
        if entry is None or entry.get("transient"):
            return False
        if "failed" in entry:
            self.failed[place] = entry["failed"]
        return True

    def _is_packed(self, chunk: _Chunk) -> bool:
        if chunk.shard is None or self.made.find(chunk.shard, chunk.key) is None:
            return False
        notes = [self.made.noted(self.tasks[place].name, self.tasks[place].key) for place in chunk.places]
        if not all(notes):
            return False
        self.failed |= {p: n["failed"] for p, n in zip(chunk.places, notes, strict=True) if n and "failed" in n}
        read_index(self.out / chunk.shard)  # a run may have been stopped before it wrote the index
        self._drop_loose(chunk)
        return True

    def _take(self, place: int, result: dict[str, Any] | Lost) -> None:
        task = self.tasks[place]
        if isinstance(result, Lost):
            result = {"name": task.name, "key": task.key, "failed": result.reason, "transient": True}
            add_note(self.out, result)
        self.made.keep(result)
        if "failed" in result:
            self.failed[place] = result["failed"]
            log.warning("%s: %s", task.source, result["failed"])
        else:
            self.new.add(place)

    # ---- shards ----

    def _about(self, place: int) -> dict[str, Any]:
        record = self.records[place]
        start, end = record.start_seconds, record.end_seconds
        more: dict[str, Any] = {"source": os.path.basename(record.path)}  # noqa: PTH119
        if start is not None or end is not None:
            more |= {"start_seconds": start, "end_seconds": end}
        return describe(record, self.classes, **more)

    def _members(self, chunk: _Chunk) -> dict[int, str]:
        """Keys in the shard, by place, of videos that did not fail."""
        keys = sample_keys([self.tasks[place].name.replace("/", "__") for place in chunk.places])
        return {place: key for place, key in zip(chunk.places, keys, strict=True) if place not in self.failed}

    def _pack(self, chunk: _Chunk) -> None:
        if chunk.shard is None:
            return
        members = self._members(chunk)
        if not members:
            log.warning("%s: all of its %d videos failed, so it is not made", chunk.shard, len(chunk.places))
            return
        videos = [
            ShardVideo(key, self.out / self.tasks[place].name, self.records[place].label, self._about(place))
            for place, key in members.items()
        ]
        self.made.keep(publish_shard(self.out, chunk.shard, chunk.key, videos))
        self._drop_loose(chunk)

    def _drop_loose(self, chunk: _Chunk) -> None:
        for place in chunk.places:
            (self.out / self.tasks[place].name).unlink(missing_ok=True)

    def _drop_emptied(self) -> None:
        """Remove empty folders, while no worker runs: one may be about to write into a folder that is empty now."""
        packed = (place for chunk in self.chunks if chunk.shard is not None for place in chunk.places)
        for folder in sorted({(self.out / self.tasks[place].name).parent for place in packed}, reverse=True):
            while folder != self.out:
                try:
                    folder.rmdir()
                except OSError:  # other files are in it, or it is gone already
                    break
                folder = folder.parent

    # ---- lists ----

    def finish(self) -> PrepareSummary:
        """Write the lists."""
        self._drop_emptied()
        paths: dict[int, str] = {}
        num_shards = 0
        for chunk in self.chunks:
            if chunk.shard is None:
                paths |= {p: os.fspath(self.out / self.tasks[p].name) for p in chunk.places if p not in self.failed}
                continue
            members = self._members(chunk)
            num_shards += bool(members)
            paths |= {p: join_path(self.out / chunk.shard, f"{key}.mp4") for p, key in members.items()}
        failed_path = self.out / "failed.csv"
        failed = [(self.records[place], reason) for place, reason in sorted(self.failed.items())]
        write_failures(failed_path, [(r.path, r.start_seconds, r.end_seconds, r.source, why) for r, why in failed])
        if not paths:
            raise RunError(
                f"{failed_path}: at least one video must be prepared, got none of {len(self.tasks)}; the "
                f"first: {self.records[0].path}: {self.failed[0]}."
            )
        notes = [self.made.noted(self.tasks[place].name, self.tasks[place].key) for place in paths]
        path = self.out / "manifest.csv"
        write_manifest(
            self._manifest(paths, str(path)), path, classes_path=self.out / "classes.txt" if self.classes else None
        )
        self._warn_of_old_shards()
        return PrepareSummary(
            out=self.out,
            manifest_path=path,
            failed_path=failed_path,
            num_listed=len(self.tasks),
            num_new=len(self.new),
            num_kept=len(paths) - len(self.new),
            num_shards=num_shards,
            num_bytes=sum(note["bytes"] for note in notes if note is not None),
            num_source_bytes=sum(self.source_bytes.values()),
            failed=tuple((record.path, reason) for record, reason in failed),
        )

    def _manifest(self, paths: Mapping[int, str], origin: str) -> Manifest:
        columns = dict.fromkeys((name for record in self.records for name, _ in record.groups), "")
        has_splits = any(self.splits)
        if has_splits:
            columns.pop("split", None)
        made = []
        for place, path in sorted(paths.items()):
            record = self.records[place]
            groups = columns | {name: text for name, text in record.groups if name in columns}
            groups |= {"split": self.splits[place]} if has_splits else {}
            made.append(VideoRecord(path, record.label, source=record.source, groups=tuple(groups.items())))
        return Manifest(made, self.classes, origin)

    def _warn_of_old_shards(self) -> None:
        ours = {chunk.shard for chunk in self.chunks}
        old = [name for name in self.made.names(".tar") if name not in ours]
        if old:
            log.warning("%s: it still has shards of an earlier list: %s. Remove them.", self.out, ", ".join(old))
