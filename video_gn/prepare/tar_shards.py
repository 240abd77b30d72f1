"""Packs videos into tar shards of the WebDataset layout: `KEY.mp4` beside `KEY.json` and `KEY.cls`.

A few hundred large files are kinder to a shared file system than 240,000 small ones. A list names a shard's
member as `train-000000.tar::KEY.mp4`; videos are read from within the shard, any frame of any of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from video_gn.decoding.tar_members import (
    INDEX_SUFFIX,
    build_index,
    is_member,
    join_path,
    read_index,
    write_index,
)
from video_gn.errors import ManifestError, RunError
from video_gn.files import whole_path
from video_gn.lists.lines import write_table
from video_gn.lists.manifest import Manifest, write_manifest
from video_gn.lists.records import VideoRecord
from video_gn.prepare.made_files import MadeFiles, announce, claimed, key_of
from video_gn.prepare.names import sample_keys, stem_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardVideo:
    """A video that goes into a shard.

    Args:
        key: WebDataset's; without a dot in its last part.
        path: of the video's file.
        label: number of its class, or None.
        about: what `KEY.json` says.
    """

    key: str
    path: Path
    label: int | None
    about: dict[str, Any]

    @property
    def video_name(self) -> str:
        """The member that holds the video."""
        return f"{self.key}{self.path.suffix.lower()}"


@dataclass(frozen=True)
class ShardSummary:
    """What `write_shards` did.

    Args:
        out: the directory.
        manifest_path: the list of all members.
        num_videos: in the shards.
        num_shards: of all.
        num_new: shards that were made now; the others were there already.
        num_bytes: of all shards.
        failed: (path, reason) of what could not be packed.
    """

    out: Path
    manifest_path: Path
    num_videos: int
    num_shards: int
    num_new: int
    num_bytes: int
    failed: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """A few lines for a person."""
        lines = [
            f"{self.out}: {self.num_videos} videos in {self.num_shards} shards, {self.num_new} of them new, "
            f"{self.num_bytes / 1e6:.1f} MB",
            f"list: {self.manifest_path}",
        ]
        if self.failed:
            lines.append(f"{len(self.failed)} failed: {self.out / 'failed.csv'}")
        return "\n".join(lines)


def shard_name(name: str, number: int) -> str:
    """`NAME-000000.tar`."""
    return f"{name}-{number:06d}.tar"


def write_shard(path: Path, samples: Sequence[ShardVideo]) -> int:
    """Write a tar, safe on disk on return; the same samples give the same bytes.

    Args:
        path: to write, replaced where it is there.
        samples: in their order, with different keys.

    Returns:
        Size in bytes.

    Raises:
        OSError: where a video cannot be read, or the shard not be written.
    """
    with path.open("wb") as file:
        # PAX: names of any length in any script, and no times or users in it that are not set here.
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for sample in samples:
                with sample.path.open("rb") as video:
                    info = _header(sample.video_name, os.fstat(video.fileno()).st_size)
                    tar.addfile(info, video)
                _add_bytes(tar, f"{sample.key}.json", json.dumps(sample.about, sort_keys=True).encode())
                if sample.label is not None:
                    _add_bytes(tar, f"{sample.key}.cls", str(sample.label).encode())
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


def publish_shard(directory: Path, name: str, key: str, samples: Sequence[ShardVideo]) -> dict[str, Any]:
    """Write a shard and its index into a directory, whole or not at all; its note in the journal.

    Raises:
        OSError: see `write_shard`.
    """
    path = directory / name
    path.with_name(name + INDEX_SUFFIX).unlink(missing_ok=True)
    with whole_path(path) as part:
        entry = {"name": name, "key": key, "bytes": write_shard(part, samples)}
        index = build_index(part)
        announce(directory, entry)
    write_index(path, index)
    return entry


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_header(name, len(data)), io.BytesIO(data))


def describe(record: VideoRecord, classes: Sequence[str], **more: Any) -> dict[str, Any]:
    """What `KEY.json` says of a record."""
    about: dict[str, Any] = dict(record.groups)
    about |= {} if record.label is None else {"label": classes[record.label], "class": record.label}
    return {**about, **more}


# ---- files as they are -------------------------------------------------------------------------


def write_shards(
    manifest: Manifest,
    out_dir: str | os.PathLike[str],
    *,
    name: str = "videos",
    videos_per_shard: int | None = None,
    bytes_per_shard: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ShardSummary:
    """Pack the files of a list as they are into `out_dir/NAME-000000.tar`, ...

    Segments stay in the list: `NAME.csv` has those of `manifest`. A file that has several lies in a shard once.
    A call after one that was interrupted leaves whole shards alone.

    Args:
        manifest: the videos.
        out_dir: where the shards and `NAME.csv`, `classes.txt` and `failed.csv` go.
        name: of the shards.
        videos_per_shard: at most; by default 1000, unless there is a size.
        bytes_per_shard: of videos, at most, unless a single one is larger.
        overwrite: make whole shards anew.
        progress: called with (shards done, shards).

    Raises:
        ValueError: for a setting out of its range.
        RunError: where another run is at work in `out_dir`, or nothing could be packed.
        OSError: where nothing can be written.
    """
    if not name or not all(letter.isalnum() or letter in "-_" for letter in name):
        raise ValueError(f"name must be of letters, digits, - and _, got {name!r}. It begins the shards' names.")
    for setting, value in (("videos_per_shard", videos_per_shard), ("bytes_per_shard", bytes_per_shard)):
        if value is not None and value < 1:
            raise ValueError(f"{setting} must be at least 1, got {value!r}.")
    if videos_per_shard is None and bytes_per_shard is None:
        videos_per_shard = 1000
    out = Path(out_dir)
    with claimed(out):
        failed: dict[str, str] = {}
        sizes: dict[str, tuple[int, int]] = {}
        first: dict[str, VideoRecord] = {}
        for record in manifest.records:
            if record.path in failed or record.path in sizes:
                continue
            try:
                status = Path(record.path).stat()
                if is_member(record.path):
                    raise ManifestError("it lies in a shard already")
                if not status.st_size:
                    raise ManifestError("the file is empty (0 bytes)")
                sizes[record.path] = (status.st_size, status.st_mtime_ns)
                first[record.path] = record
            except OSError as error:
                failed[record.path] = f"the file cannot be read ({error.strerror})"
            except ManifestError as error:
                failed[record.path] = str(error)
        if not sizes:
            raise RunError(f"{manifest.origin}: a video must be there to be packed, got none of {len(manifest)}.")
        chunks = _chunks(sizes, videos_per_shard, bytes_per_shard)
        place, num_new, num_bytes = _pack_chunks(
            out, name, chunks, sizes, first, manifest.classes, overwrite=overwrite, progress=progress
        )
        records = [replace(r, path=place[r.path], missing=False) for r in manifest.records if r.path in place]
        write_failures(out / "failed.csv", [(path, None, None, "", reason) for path, reason in failed.items()])
        path = out / f"{name}.csv"
        write_manifest(Manifest(records, manifest.classes, str(path)), path, classes_path=out / "classes.txt")
    return ShardSummary(out, path, len(place), len(chunks), num_new, num_bytes, tuple(failed.items()))


def _chunks(
    sizes: dict[str, tuple[int, int]], videos_per_shard: int | None, bytes_per_shard: int | None
) -> list[list[str]]:
    chunks: list[list[str]] = []
    total = 0
    for path, (size, _) in sizes.items():
        is_full = (videos_per_shard is not None and chunks and len(chunks[-1]) == videos_per_shard) or (
            bytes_per_shard is not None and total + size > bytes_per_shard
        )
        if not chunks or is_full:
            chunks.append([])
            total = 0
        chunks[-1].append(path)
        total += size
    return chunks


def _pack_chunks(
    out: Path,
    name: str,
    chunks: list[list[str]],
    sizes: dict[str, tuple[int, int]],
    first: dict[str, VideoRecord],
    classes: Sequence[str],
    *,
    overwrite: bool,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, str], int, int]:
    """Write the shards that are not there; where each path lies now, the number of new shards, bytes of all."""
    made = MadeFiles(out)
    keys = dict(zip(sizes, sample_keys(_unique_stems(list(sizes))), strict=True))
    place: dict[str, str] = {}
    num_new = num_bytes = 0
    for number, chunk in enumerate(chunks):
        shard = shard_name(name, number)
        samples = [
            ShardVideo(keys[p], Path(p), first[p].label, describe(first[p], classes, source=Path(p).name))
            for p in chunk
        ]
        identity = [[s.video_name, os.path.abspath(s.path), *sizes[p], s.label, s.about]  # noqa: PTH100
                    for p, s in zip(chunk, samples, strict=True)]  # fmt: skip
        key = key_of(identity)
        entry = None if overwrite else made.find(shard, key)
        if entry is None:
            entry = publish_shard(out, shard, key, samples)
            num_new += 1
        else:
            read_index(out / shard)  # a run may have been ended before it wrote the index
        num_bytes += entry["bytes"]
        place |= {p: join_path(out / shard, s.video_name) for p, s in zip(chunk, samples, strict=True)}
        if progress is not None:
            progress(number + 1, len(chunks))
    return place, num_new, num_bytes


def _unique_stems(paths: list[str]) -> list[str]:
    """Stems of files; of those that several have, the path goes in by its hash."""
    seen: dict[str, int] = {}
    for path in paths:
        stem = stem_of(path).lower()
        seen[stem] = seen.get(stem, 0) + 1
    return [
        f"{stem_of(p)}.{hashlib.sha256(os.fsencode(p)).hexdigest()[:10]}.x" if seen[stem_of(p).lower()] > 1
        else f"{stem_of(p)}.x"
        for p in paths
    ]  # fmt: skip


def write_failures(path: Path, rows: Sequence[tuple[str, float | None, float | None, str, str]]) -> None:
    """Write `failed.csv`: path, start_seconds, end_seconds, where it was listed, reason."""
    header = ["path", "start_seconds", "end_seconds", "listed", "reason"]
    table = [
        [_text(name), *("" if x is None else repr(x) for x in (start, end)), _text(listed), " ".join(reason.split())]
        for name, start, end, listed, reason in rows
    ]
    write_table(path, [header, *table])


def _text(name: str) -> str:
    """A file name that is no valid text, made readable."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
