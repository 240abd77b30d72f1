"""Packs videos into tar shards of the WebDataset layout: `KEY.mp4` beside `KEY.json` and `KEY.cls`.

A few hundred large files are a smaller load on a shared file system than 240,000 small ones. A list names a shard's
member as `train-000000.tar::KEY.mp4`; decoding reads any frame of it within the shard.
"""

# os.path: a member of a shard is no path.
# ruff: noqa: PTH100

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from video_gn.checks import check_integer
from video_gn.decoding.tar_members import (
    INDEX_SUFFIX,
    build_index,
    is_member,
    join_path,
    read_index,
    write_index,
)
from video_gn.errors import RunError, SettingError
from video_gn.files import whole_path
from video_gn.lists.lines import write_table
from video_gn.lists.manifest import Manifest, write_manifest
from video_gn.lists.records import VideoRecord
from video_gn.parts import Part
from video_gn.prepare.made_files import (
    MadeFiles,
    announce,
    check_finished,
    claimed,
    finish_part,
    key_of,
    unfinished,
)
from video_gn.prepare.names import sample_keys, stem_of
from video_gn.shown import count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardVideo:
    """A video that goes into a shard."""

    key: str  # WebDataset's, without dots
    path: Path
    label: int | None
    about: dict[str, Any]  # content of `KEY.json`

    @property
    def video_name(self) -> str:
        """The member that holds the video."""
        return f"{self.key}{self.path.suffix.lower()}"


@dataclass(frozen=True)
class ShardSummary:
    """What `write_shards` did."""

    out: Path
    manifest_path: Path  # list of all members
    num_videos: int
    num_shards: int
    num_new: int  # shards made now; the others existed already
    num_bytes: int  # of all shards
    failed: tuple[tuple[str, str], ...]  # (path, reason) of each video that could not be packed
    part: Part | None = None  # of which all but `failed` is; its lists come with the merge

    def text(self) -> str:
        """A few lines for a person."""
        lines = [
            f"{self.out}: {count(self.num_videos, 'video')} in {count(self.num_shards, 'shard')}, "
            f"{self.num_new} of them new, {self.num_bytes / 1e6:.1f} MB",
            f"list: {self.manifest_path}" if self.part is None else f"part {self.part}: --merge writes the list of all",
        ]
        if self.failed:
            lines.append(f"{len(self.failed)} failed" + ("" if self.part else f": {self.out / 'failed.csv'}"))
        return "\n".join(lines)


def shard_name(name: str, number: int) -> str:
    """`NAME-000000.tar`."""
    return f"{name}-{number:06d}.tar"


def write_shard(path: Path, samples: Sequence[ShardVideo]) -> int:
    """Write or replace a tar, and return its size; the same samples, in the same order, give the same bytes.

    Raises:
        OSError: if a video cannot be read, or the shard cannot be written.
    """
    with path.open("wb") as file:
        # PAX: names of any length in any script, and no times or users that are not set here.
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for sample in samples:
                with sample.path.open("rb") as video:
                    info = _header(sample.video_name, os.fstat(video.fileno()).st_size)
                    tar.addfile(info, video)
                _add_bytes(tar, f"{sample.key}.json", json.dumps(sample.about, sort_keys=True).encode())
                if sample.label is not None:
                    _add_bytes(tar, f"{sample.key}.cls", str(sample.label).encode())
    return path.stat().st_size


def publish_shard(made: MadeFiles, name: str, key: str, samples: Sequence[ShardVideo]) -> dict[str, Any]:
    """Write a shard and its index into the directory of `made`, whole or not at all, and note it; returns the note."""
    path = made.directory / name
    path.with_name(name + INDEX_SUFFIX).unlink(missing_ok=True)
    with whole_path(path) as part:
        entry = {"name": name, "key": key, "bytes": write_shard(part, samples)}
        index = build_index(part)
        announce(made.directory, made.journal, entry)
    write_index(path, index)
    return entry


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_header(name, len(data)), io.BytesIO(data))


def describe(record: VideoRecord, classes: Sequence[str], **more: Any) -> dict[str, Any]:
    """Content of `KEY.json` for a record."""
    about: dict[str, Any] = dict(record.groups)
    about |= {} if record.label is None else {"label": classes[record.label], "class": record.label}
    return {**about, **more}


# ---- a whole list, without encoding ------------------------------------------------------------


def write_shards(
    manifest: Manifest,
    out_dir: str | os.PathLike[str],
    *,
    name: str = "videos",
    videos_per_shard: int | None = None,
    bytes_per_shard: int | None = None,
    overwrite: bool = False,
    part: Part | None = None,
    merge: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ShardSummary:
    """Pack the unchanged files of a list into `out_dir/NAME-000000.tar`, ...

    Segments stay in the list: `NAME.csv` has those of `manifest`. A file with several segments is packed once.
    The call after a stopped one keeps whole shards.

    Args:
        manifest: Videos to pack.
        out_dir: Output directory, for the shards, `NAME.csv`, `classes.txt` and `failed.csv`.
        name: Start of the shards' names.
        videos_per_shard: Most videos in a shard; 1000 if neither limit is set.
        bytes_per_shard: Most bytes of videos in a shard, unless a single one is larger.
        overwrite: Make whole shards anew.
        part: Part of the shards to make, while other processes make the others; without the list.
        merge: Write the list of the shards that all parts have made; nothing is made.
        progress: Called with (shards done, shards).

    Raises:
        ValueError: for a setting out of its range.
        ConfigError: for parts that are missing, not finished, or do not fit together.
        RunError: if another run is writing to `out_dir`, no video could be packed, or nothing can be written.
    """
    if not name or not all(letter.isalnum() or letter in "-_" for letter in name):
        raise SettingError(f"name must have letters, digits, - and _ only, got {name!r}. It begins the shards' names.")
    for setting, value in (("videos_per_shard", videos_per_shard), ("bytes_per_shard", bytes_per_shard)):
        if value is not None:
            check_integer(setting, value)
    if part is not None and merge:
        raise SettingError("part and merge must not both be set, got both. Merge when all parts are done.")
    if videos_per_shard is None and bytes_per_shard is None:
        videos_per_shard = 1000
    out = Path(out_dir)
    path = out / f"{name}.csv"
    with claimed(out, part):
        files, failed = _look_at(manifest)
        if not files:
            raise RunError(f"{manifest.origin}: at least one video must be readable, got none of {len(manifest)}.")
        chunks = _chunks(files, videos_per_shard, bytes_per_shard)
        plan = key_of([[os.path.abspath(file) for file in chunk] for chunk in chunks])
        count = check_finished(out, path.name, plan) if merge else None
        made = MadeFiles(out, part=part, merge=merge)
        mine = {shard_name(name, n): chunk for n, chunk in enumerate(chunks) if part is None or part.has(n)}
        samples = _samples(files, manifest.classes)
        num_new = num_bytes = 0
        for number, (shard, chunk) in enumerate(mine.items()):
            key = key_of([samples[file][1] for file in chunk])
            entry = None if overwrite else made.find(shard, key)
            if entry is None and count is not None:
                raise unfinished(out, Part(number % count, count))
            if entry is None:
                entry = publish_shard(made, shard, key, [samples[file][0] for file in chunk])
                num_new += 1
            else:
                read_index(out / shard)  # a run may have been stopped before it wrote the index
            num_bytes += entry["bytes"]
            if progress is not None:
                progress(number + 1, len(mine))
        place = {file: join_path(out / s, samples[file][0].video_name) for s, chunk in mine.items() for file in chunk}
        if part is None:
            records = [replace(r, path=place[r.path], missing=False) for r in manifest.records if r.path in place]
            write_failures(out / "failed.csv", [(file, None, None, "", reason) for file, reason in failed.items()])
            write_manifest(Manifest(records, manifest.classes, str(path)), path, classes_path=out / "classes.txt")
        else:
            finish_part(made, path.name, plan)
    return ShardSummary(out, path, len(place), len(mine), num_new, num_bytes, tuple(failed.items()), part)


class _File(NamedTuple):
    """A file to pack: the first record that names it, its size, and the time of its last change."""

    record: VideoRecord
    num_bytes: int
    mtime_ns: int


def _look_at(manifest: Manifest) -> tuple[dict[str, _File], dict[str, str]]:
    """By path: the files to pack, and the reasons for those that cannot be."""
    files: dict[str, _File] = {}
    failed: dict[str, str] = {}
    for record in manifest.records:
        if record.path in failed or record.path in files:
            continue
        try:
            status = Path(record.path).stat()
        except OSError as error:
            failed[record.path] = f"the file cannot be read ({error.strerror})"
            continue
        if is_member(record.path):
            failed[record.path] = "it is in a shard already"
        elif not status.st_size:
            failed[record.path] = "the file is empty (0 bytes)"
        else:
            files[record.path] = _File(record, status.st_size, status.st_mtime_ns)
    return files, failed


def _chunks(files: dict[str, _File], videos_per_shard: int | None, bytes_per_shard: int | None) -> list[list[str]]:
    chunks: list[list[str]] = []
    total = 0
    for path, (_, size, _) in files.items():
        if (
            not chunks
            or len(chunks[-1]) == videos_per_shard
            or (bytes_per_shard is not None and total + size > bytes_per_shard)
        ):
            chunks.append([])
            total = 0
        chunks[-1].append(path)
        total += size
    return chunks


def _samples(files: dict[str, _File], classes: Sequence[str]) -> dict[str, tuple[ShardVideo, list[Any]]]:
    """By path: what goes into a shard, and what its bytes follow from."""
    keys = sample_keys(_unique_stems(list(files)))
    samples = {}
    for (path, (record, *state)), key in zip(files.items(), keys, strict=True):
        about = describe(record, classes, source=Path(path).name)
        sample = ShardVideo(key, Path(path), record.label, about)
        samples[path] = sample, [sample.video_name, os.path.abspath(path), *state, record.label, about]
    return samples


def _unique_stems(paths: list[str]) -> list[str]:
    """Stems of files, with a hash of the path where several files have the same stem."""
    stems = list(map(stem_of, paths))
    counts = Counter(map(str.lower, stems))
    return [
        f"{stem}.{hashlib.sha256(os.fsencode(path)).hexdigest()[:10]}.x" if counts[stem.lower()] > 1 else f"{stem}.x"
        for path, stem in zip(paths, stems, strict=True)
    ]


def write_failures(path: Path, rows: Sequence[tuple[str, float | None, float | None, str, str]]) -> None:
    """Write `failed.csv`: path, start_seconds, end_seconds, the list and line that it comes from, reason."""
    header = ["path", "start_seconds", "end_seconds", "listed", "reason"]
    table = [
        [_text(name), *("" if x is None else repr(x) for x in (start, end)), _text(listed), " ".join(reason.split())]
        for name, start, end, listed, reason in rows
    ]
    write_table(path, [header, *table])


def _text(name: str) -> str:
    """A file name as text, with bytes that are not valid text escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
