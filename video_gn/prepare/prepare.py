"""Prepares videos for training: cut to their segments, scaled down, and written so that random clips decode fast.

    from video_gn.lists.read import read_manifest
    from video_gn.prepare.prepare import prepare

    summary = prepare({split: read_manifest("k400.csv", root="raw", split=split) for split in ("train", "val")}, "k400")

A run that was interrupted, in whatever way, is taken up by the same call.
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

from video_gn.decoding.tar_members import join_path, read_index
from video_gn.errors import RunError
from video_gn.lists.manifest import Manifest, check_same_classes, write_manifest
from video_gn.lists.records import VideoRecord
from video_gn.prepare._prepare_journal import Journal, claimed, note
from video_gn.prepare._prepare_task import Chunk, Task, digest, make, state_of
from video_gn.prepare.encode import EncodeSettings
from video_gn.prepare.names import output_names, sample_keys, with_raw_videos
from video_gn.prepare.tar_shards import (
    Sample,
    describe,
    publish_shard,
    shard_name,
    write_failures,
)
from video_gn.processes import Lost, num_cores, run_tasks

__all__ = ["PrepareSummary", "prepare", "with_raw_videos"]

log = logging.getLogger(__name__)

# Measured on ten-second clips of Kinetics at 340 x 256; see the table in `video_gn.prepare.encode`.
KEY_FRAME_INTERVAL = 32
CRF = 20.0
# A frame takes milliseconds; only a hang takes so long for one.
_STALL_SECONDS = 120.0


@dataclass(frozen=True)
class PrepareSummary:
    """What `prepare` did.

    Args:
        out: the directory.
        manifest_path: the list of what was made, for training and testing.
        failed_path: the list of what was not.
        num_listed: videos that were asked for.
        num_new: made now.
        num_kept: made by an earlier call.
        num_shards: 0 for loose files.
        num_bytes: of all videos that were made.
        num_source_bytes: of the files that they were made of, each counted once.
        failed: (path, reason).
    """

    out: Path
    manifest_path: Path
    failed_path: Path
    num_listed: int
    num_new: int
    num_kept: int
    num_shards: int
    num_bytes: int
    num_source_bytes: int
    failed: tuple[tuple[str, str], ...]

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

    The list has the order of `manifest`, and the files the same bytes, whatever the number of workers. What an
    interrupted call has finished is kept by the next, unless its source or the settings have changed. What
    cannot be read, crashes a worker or hangs is named in `out_dir/failed.csv` and left out; crashes and hangs
    are tried again by the next call, unless their shard is there.

    Args:
        manifest: the videos; or one for each split, whose names then are folders and a column `split`.
        out_dir: where the files go, with `classes.txt` and `failed.csv`.
        short_side_px: what a longer short side is scaled to, even.
        key_frame_interval: frames from one key frame to the next.
        crf: x264's quality; lower is better and larger.
        num_workers: processes; None takes the number of cores. A script guards its main part with
            `if __name__ == "__main__"`.
        shards: videos of a tar shard; None leaves loose files. Videos that fail leave a shard with fewer.
        overwrite: make anew what is there.
        progress: called with (videos done or failed, videos).

    Raises:
        ValueError: for a setting out of its range, or a video that is listed twice.
        ManifestError: for splits whose classes differ, or names that are no text.
        RunError: where another run is at work in `out_dir`, workers cannot start, or nothing could be made.
        OSError: where nothing can be written.
    """
    settings = EncodeSettings(short_side_px, key_frame_interval, float(crf))
    if num_workers is None:
        num_workers = num_cores()
    for name, value in (("num_workers", num_workers), ("shards", 1 if shards is None else shards)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}.")
    parts = dict(manifest) if isinstance(manifest, Mapping) else {"": manifest}
    out = Path(out_dir)
    with claimed(out):
        run = _Run(out, parts, settings, shards)
        run.work(num_workers, overwrite=overwrite, progress=progress)
        return run.finish()


class _Run:
    """One call of `prepare`.

    Args:
        out: the directory, claimed.
        parts: manifests by split; "" where there are no splits.
        settings: how to write.
        shards: videos of a shard, or None.
    """

    def __init__(self, out: Path, parts: Mapping[str, Manifest], settings: EncodeSettings, shards: int | None) -> None:
        first = next((part for part in parts.values()), None)
        if first is None or not any(len(part) for part in parts.values()):
            raise ValueError("manifest must have at least one video, got none.")
        for split, part in parts.items():
            if split and not re.fullmatch(r"\w[\w-]*", split):
                raise ValueError(f"manifest: a split must be a word, got {split!r}. It is a folder's name.")
            check_same_classes(first, part)
        self.out = out
        self.classes = next((part.classes for part in parts.values() if part.classes), ())
        self.journal = Journal(out)
        self.records: list[VideoRecord] = []
        self.splits: list[str] = []
        self.tasks: list[Task] = []
        self.chunks: list[Chunk] = []
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
            size, mtime = state_of(record.path)
            self.source_bytes[record.path] = max(size, 0)
            segment = (record.start_seconds, record.end_seconds)
            path = os.path.abspath(record.path)  # noqa: PTH100  # a member of a shard is no path
            key = digest([how, path, size, mtime, segment])
            self.tasks.append(Task(record.path, segment, name, key))
        self.records += records
        self.splits += [split] * len(records)
        if shards is None:
            self.chunks += [Chunk(None, [place]) for place in range(begin, len(self.tasks))]
            return
        for number, start in enumerate(range(begin, len(self.tasks), shards)):
            places = list(range(start, min(start + shards, len(self.tasks))))
            about = [[self.tasks[p].name, self.tasks[p].key, self._about(p), self.records[p].label] for p in places]
            self.chunks.append(Chunk(shard_name(split or "videos", number), places, digest(about)))

    # ---- work ----

    def work(self, num_workers: int, *, overwrite: bool, progress: Callable[[int, int], None] | None) -> None:
        """Make what is not there."""
        waiting: list[Task] = []
        open_chunk: dict[int, Chunk] = {}
        left: dict[str, int] = {}
        for chunk in self.chunks:
            if not overwrite and self._is_packed(chunk):
                continue
            todo = [place for place in chunk.places if overwrite or not self._is_made(place)]
            waiting += [self.tasks[place] for place in todo]
            open_chunk.update((place, chunk) for place in todo)
            if chunk.shard is not None:
                left[chunk.shard] = len(todo)
                if not todo:
                    self._pack(chunk)
        num_done = len(self.tasks) - len(waiting)
        if progress is not None:
            progress(num_done, len(self.tasks))
        place_of = {task.name: place for place, task in enumerate(self.tasks)}
        work = partial(make, out=self.out, settings=self.settings)
        results = run_tasks(
            waiting,
            work,
            num_workers=min(num_workers, max(1, len(waiting))),
            stall_seconds=_STALL_SECONDS,
            preload=__name__,
        )
        for task, result in results:
            place = place_of[task.name]
            self._take(place, result)
            chunk = open_chunk[place]
            if chunk.shard is not None:
                left[chunk.shard] -= 1
                if not left[chunk.shard]:
                    self._pack(chunk)
            num_done += 1
            if progress is not None:
                progress(num_done, len(self.tasks))

    def _is_made(self, place: int) -> bool:
        task = self.tasks[place]
        entry = self.journal.find(task.name, task.key)
        if entry is None or entry.get("transient"):
            return False
        if "failed" in entry:
            self.failed[place] = entry["failed"]
        return True

    def _is_packed(self, chunk: Chunk) -> bool:
        if chunk.shard is None or self.journal.find(chunk.shard, chunk.key) is None:
            return False
        notes = [self.journal.noted(self.tasks[place].name, self.tasks[place].key) for place in chunk.places]
        if not all(notes):
            return False
        self.failed |= {p: n["failed"] for p, n in zip(chunk.places, notes, strict=True) if n and "failed" in n}
        read_index(self.out / chunk.shard)  # a run may have been ended before it wrote the index
        self._drop_loose(chunk)
        return True

    def _take(self, place: int, result: dict[str, Any] | Lost) -> None:
        task = self.tasks[place]
        if isinstance(result, Lost):
            result = {"name": task.name, "key": task.key, "failed": result.reason, "transient": True}
            note(self.out, result)
        self.journal.keep(result)
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

    def _members(self, chunk: Chunk) -> dict[int, str]:
        """Keys in the shard, by place, of what did not fail."""
        keys = sample_keys([self.tasks[place].name.replace("/", "__") for place in chunk.places])
        return {place: key for place, key in zip(chunk.places, keys, strict=True) if place not in self.failed}

    def _pack(self, chunk: Chunk) -> None:
        members = self._members(chunk)
        assert chunk.shard is not None
        if not members:
            log.warning("%s: all of its %d videos failed, it is left out", chunk.shard, len(chunk.places))
            return
        samples = [
            Sample(key, self.out / self.tasks[place].name, self.records[place].label, self._about(place))
            for place, key in members.items()
        ]
        self.journal.keep(publish_shard(self.out, chunk.shard, chunk.key, samples))
        self._drop_loose(chunk)

    def _drop_loose(self, chunk: Chunk) -> None:
        for place in chunk.places:
            (self.out / self.tasks[place].name).unlink(missing_ok=True)

    def _drop_emptied(self) -> None:
        """Only when no worker runs: one may be about to write into a folder that is empty for a moment."""
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
        num_shards = num_bytes = 0
        for chunk in self.chunks:
            if chunk.shard is None:
                paths |= {p: os.fspath(self.out / self.tasks[p].name) for p in chunk.places if p not in self.failed}
                continue
            members = self._members(chunk)
            num_shards += bool(members)
            paths |= {p: join_path(self.out / chunk.shard, f"{key}.mp4") for p, key in members.items()}
        rows = [
            (r.path, r.start_seconds, r.end_seconds, r.source, self.failed[p])
            for p, r in enumerate(self.records)
            if p in self.failed
        ]
        write_failures(self.out / "failed.csv", rows)
        if not paths:
            raise RunError(
                f"{self.out / 'failed.csv'}: a video must be prepared, got none of {len(self.tasks)}; the first: "
                f"{self.records[0].path}: {self.failed[0]}."
            )
        for place in paths:
            entry = self.journal.noted(self.tasks[place].name, self.tasks[place].key)
            num_bytes += 0 if entry is None else entry["bytes"]
        path = self.out / "manifest.csv"
        write_manifest(
            self._manifest(paths, str(path)), path, classes_path=self.out / "classes.txt" if self.classes else None
        )
        self._warn_of_old_shards()
        return PrepareSummary(
            out=self.out,
            manifest_path=path,
            failed_path=self.out / "failed.csv",
            num_listed=len(self.tasks),
            num_new=len(self.new),
            num_kept=len(paths) - len(self.new),
            num_shards=num_shards,
            num_bytes=num_bytes,
            num_source_bytes=sum(self.source_bytes.values()),
            failed=tuple((self.records[p].path, reason) for p, reason in sorted(self.failed.items())),
        )

    def _manifest(self, paths: Mapping[int, str], origin: str) -> Manifest:
        columns = list(dict.fromkeys(name for record in self.records for name, _ in record.groups))
        has_splits = any(self.splits)
        columns = [name for name in columns if not (has_splits and name == "split")]
        made = []
        for place, path in sorted(paths.items()):
            record = self.records[place]
            groups = [(name, dict(record.groups).get(name, "")) for name in columns]
            groups += [("split", self.splits[place])] if has_splits else []
            made.append(VideoRecord(path, record.label, source=record.source, groups=tuple(groups)))
        return Manifest(made, self.classes, origin)

    def _warn_of_old_shards(self) -> None:
        ours = {chunk.shard for chunk in self.chunks}
        old = [name for name in self.journal.names(".tar") if name not in ours]
        if old:
            log.warning("%s: shards of an earlier list are still there: %s. Remove them.", self.out, ", ".join(old))
