"""Prepares videos for training: cut to their segments, scaled down, and encoded so that random clips decode fast.

    from video_gn.lists.read import read_manifest
    from video_gn.prepare.prepare import prepare

    summary = prepare({split: read_manifest("k400.csv", root="raw", split=split) for split in ("train", "val")}, "k400")

The same call resumes a run that was stopped in any way.
"""

# os.path: a member of a shard is no path.
# ruff: noqa: PTH100

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from video_gn.checks import check_integer
from video_gn.decoding.tar_members import is_member, join_path, read_index, split_path
from video_gn.errors import DecodeError, RunError, SettingError
from video_gn.files import whole_path
from video_gn.journal import append
from video_gn.lists.manifest import Manifest, check_same_classes, write_manifest
from video_gn.lists.records import VideoRecord
from video_gn.parts import Part
from video_gn.prepare.encode import EncodeSettings, encode
from video_gn.prepare.made_files import (
    MadeFiles,
    announce,
    check_finished,
    claimed,
    finish_part,
    key_of,
    unfinished,
)
from video_gn.prepare.names import output_names, sample_keys
from video_gn.prepare.prepare_summary import PrepareSummary
from video_gn.prepare.probe import file_state
from video_gn.prepare.tar_shards import ShardVideo, describe, publish_shard, shard_name, write_failures
from video_gn.processes import Lost, num_cores, run_tasks

log = logging.getLogger(__name__)

# Measured on ten-second clips of Kinetics at 340 x 256; see the table in `video_gn.prepare.encode`.
KEY_FRAME_INTERVAL = 32
CRF = 20.0
# A frame takes milliseconds; only a hang takes so long for one.
_STALL_SECONDS = 120.0
_PLAN = "manifest.csv"  # what a part notes that it is done for


def prepare(
    manifest: Manifest | Mapping[str, Manifest],
    out_dir: str | os.PathLike[str],
    *,
    short_side_px: int = 320,
    key_frame_interval: int = KEY_FRAME_INTERVAL,
    crf: float = CRF,
    square_pixels: bool = False,
    num_workers: int | None = None,
    shards: int | None = None,
    overwrite: bool = False,
    part: Part | None = None,
    merge: bool = False,
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
        square_pixels: Scale the width of videos whose pixels are not square to what is to be shown.
        num_workers: Processes; None takes the number of cores. A script must guard its main part with
            `if __name__ == "__main__"`.
        shards: Videos in a tar shard; None leaves loose files. Videos that fail leave a shard with fewer.
        overwrite: Make existing files anew.
        part: Part of the files, or of the shards, to make, while other processes make the others; without the lists.
        merge: Write the lists of what all parts have made; nothing is made.
        progress: Called with (videos done or failed, videos).

    Raises:
        ValueError: for a setting out of its range, or a video that is listed twice.
        ManifestError: for splits whose classes differ, or names that are not text.
        ConfigError: for parts that are missing, not finished, or do not fit together.
        RunError: if another run is writing to `out_dir`, workers cannot start, no video could be prepared, or
            nothing can be written.
    """
    settings = EncodeSettings(short_side_px, key_frame_interval, float(crf), square_pixels)
    num_workers = num_cores() if num_workers is None else check_integer("num_workers", num_workers)
    if shards is not None:
        check_integer("shards", shards)
    if part is not None and merge:
        raise SettingError("part and merge must not both be set, got both. Merge when all parts are done.")
    splits = dict(manifest) if isinstance(manifest, Mapping) else {"": manifest}
    out = Path(out_dir)
    with claimed(out, part):
        run = _Run(out, splits, settings, shards, part=part, merge=merge)
        if merge:
            run.take_parts()
        else:
            run.work(num_workers, overwrite=overwrite, progress=progress)
        return run.finish()


# ---- one file ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A record and the file to make of it."""

    source: str
    segment: tuple[float | None, float | None]  # seconds, None for the video's own
    name: str  # file to make, below the directory
    key: str = ""  # the same for the same source, segment and settings; "" in another part


@dataclass
class _Chunk:
    """Tasks whose files go into one shard."""

    shard: str | None  # None for a single task whose file stays loose
    places: list[int]  # numbers of the tasks
    key: str = ""  # the same for the same tasks and labels
    num_left: int = 0  # tasks that are still to be done


def _make(
    task: _Task, beat: Callable[[], None], *, out: Path, journal: Path, settings: EncodeSettings
) -> dict[str, Any]:
    """Make one file, in a worker; its note, with the reason as "failed" if the video cannot be read."""
    note: dict[str, Any] = {"name": task.name, "key": task.key}
    try:
        with whole_path(out / task.name) as written:
            done = encode(task.source, written, settings, segment=task.segment, on_frame=beat)
            note |= {"bytes": done.num_bytes, "num_frames": done.num_frames, "size": [done.width, done.height]}
            announce(out, journal, note)
    except DecodeError as error:
        note["failed"] = error.reason
        append(journal, note)
    return note


def _state_of(path: str) -> tuple[int, int]:
    """Size and time of a file, of a frame folder's pictures, or of a member's shard; -1 if it is missing."""
    size, mtime = file_state(split_path(path)[0] if is_member(path) else path)
    return (-1, -1) if size is None or mtime is None else (size, mtime)


# ---- a whole list ------------------------------------------------------------------------------


class _Run:
    """One call of `prepare`, in a claimed directory; `manifests` are by split, by "" without splits."""

    def __init__(
        self,
        out: Path,
        manifests: Mapping[str, Manifest],
        settings: EncodeSettings,
        shards: int | None,
        *,
        part: Part | None,
        merge: bool,
    ) -> None:
        if not any(map(len, manifests.values())):
            raise SettingError("manifest must have at least one video, got none.")
        first, *_ = manifests.values()
        for split, manifest in manifests.items():
            if split and not re.fullmatch(r"\w[\w-]*", split):
                raise SettingError(f"manifest: a split must be a word, got {split!r}. It becomes a folder's name.")
            check_same_classes(first, manifest)
        self.out = out
        self.part = part
        self.classes = next((manifest.classes for manifest in manifests.values() if manifest.classes), ())
        self.made = MadeFiles(out, part=part, merge=merge)
        self.records: list[VideoRecord] = []
        self.splits: list[str] = []
        self.tasks: list[_Task] = []
        self.chunks: list[_Chunk] = []  # this part's
        self.num_chunks = 0  # of all parts
        self.source_bytes: dict[str, int] = {}
        self.new: set[int] = set()
        self.failed: dict[int, str] = {}
        how = settings.fingerprint()
        for split, manifest in manifests.items():
            self._plan(split, manifest, how, shards)
        self.plan = key_of(
            [how, shards, [(task.name, os.path.abspath(task.source), task.segment) for task in self.tasks]]
        )
        self.settings = settings

    def _plan(self, split: str, manifest: Manifest, how: str, shards: int | None) -> None:
        begin = len(self.tasks)
        records = list(manifest.records)
        for record, name in zip(records, output_names(records, manifest.classes, below=split), strict=True):
            self.tasks.append(_Task(record.path, (record.start_seconds, record.end_seconds), name))
        self.records += records
        self.splits += [split] * len(records)
        for number, start in enumerate(range(begin, len(self.tasks), shards or 1)):
            places = list(range(start, min(start + (shards or 1), len(self.tasks))))
            self.num_chunks += 1
            if self.part is not None and not self.part.has(self.num_chunks - 1):
                continue  # nor are its sources looked at
            for place in places:
                self._set_key(place, how)
            if shards is None:
                self.chunks.append(_Chunk(None, places))
                continue
            about = [[self.tasks[p].name, self.tasks[p].key, self._about(p), self.records[p].label] for p in places]
            self.chunks.append(_Chunk(shard_name(split or "videos", number), places, key_of(about)))

    def _set_key(self, place: int, how: str) -> None:
        task = self.tasks[place]
        size, mtime = _state_of(task.source)
        num_bytes = file_state(task.source)[0] or 0 if is_member(task.source) else max(size, 0)
        self.source_bytes[task.source] = num_bytes
        self.tasks[place] = replace(task, key=key_of([how, os.path.abspath(task.source), size, mtime, task.segment]))

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
        num_other = 0 if overwrite else sum((self.out / name).is_file() for name in todo)
        if num_other:
            log.warning(
                "%d of the %d videos are in %s already, but damaged, or made with other settings or from other files: "
                "they are made again, and its lists are replaced",
                num_other, len(self.tasks), self.out,
            )  # fmt: skip
        num_all = sum(len(chunk.places) for chunk in self.chunks)
        num_kept = num_all - len(todo)
        if progress is not None:
            progress(num_kept, num_all)
        results = run_tasks(
            [self.tasks[place] for place, _ in todo.values()],
            partial(_make, out=self.out, journal=self.made.journal, settings=self.settings),
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
                progress(num_done, num_all)
        if self.part is not None:
            finish_part(self.made, _PLAN, self.plan)

    def take_parts(self) -> None:
        """Find what all parts have made."""
        count = check_finished(self.out, _PLAN, self.plan)
        for number, chunk in enumerate(self.chunks):
            if self._is_packed(chunk):
                continue
            are_made = all(self._is_made(place, try_again=False) for place in chunk.places)
            if not are_made or (chunk.shard is not None and not self.failed.keys() >= set(chunk.places)):
                raise unfinished(self.out, Part(number % count, count))

    def _is_made(self, place: int, *, try_again: bool = True) -> bool:
        task = self.tasks[place]
        entry = self.made.find(task.name, task.key)
        if entry is None or (try_again and entry.get("transient")):
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
            append(self.made.journal, result)
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
        self.made.keep(publish_shard(self.made, chunk.shard, chunk.key, videos))
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
        """Write the lists, unless this is a part."""
        paths: dict[int, str] = {}
        num_shards = 0
        for chunk in self.chunks:
            if chunk.shard is None:
                paths |= {p: os.fspath(self.out / self.tasks[p].name) for p in chunk.places if p not in self.failed}
                continue
            members = self._members(chunk)
            num_shards += bool(members)
            paths |= {p: join_path(self.out / chunk.shard, f"{key}.mp4") for p, key in members.items()}
        path, failed_path = self.out / "manifest.csv", self.out / "failed.csv"
        failed = [(self.records[place], reason) for place, reason in sorted(self.failed.items())]
        if self.part is None:
            self._write_lists(path, failed_path, paths, failed)
        notes = [self.made.noted(self.tasks[place].name, self.tasks[place].key) for place in paths]
        return PrepareSummary(
            out=self.out,
            manifest_path=path,
            failed_path=failed_path,
            num_listed=sum(len(chunk.places) for chunk in self.chunks),
            num_new=len(self.new),
            num_kept=len(paths) - len(self.new),
            num_shards=num_shards,
            num_bytes=sum(note["bytes"] for note in notes if note is not None),
            num_source_bytes=sum(self.source_bytes.values()),
            failed=tuple((record.path, reason) for record, reason in failed),
            part=self.part,
        )

    def _write_lists(
        self, path: Path, failed_path: Path, paths: Mapping[int, str], failed: Sequence[tuple[VideoRecord, str]]
    ) -> None:
        self._drop_emptied()
        write_failures(failed_path, [(r.path, r.start_seconds, r.end_seconds, r.source, why) for r, why in failed])
        if not paths:
            raise RunError(
                f"{failed_path}: at least one video must be prepared, got none of {len(self.tasks)}; the "
                f"first: {self.records[0].path}: {self.failed[0]}."
            )
        write_manifest(
            self._manifest(paths, str(path)), path, classes_path=self.out / "classes.txt" if self.classes else None
        )
        self._warn_of_old_shards()

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
