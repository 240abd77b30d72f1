"""Names the files that are made from the records of a list, and finds raw Kinetics videos."""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH119, PTH122

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from video_gn.decoding.tar_members import is_member, split_path
from video_gn.errors import SettingError
from video_gn.lists.file_names import is_video, walk_videos
from video_gn.lists.manifest import Manifest
from video_gn.lists.records import VideoRecord

# File systems limit names to 255 bytes, of which temporary names, segments and hashes need some.
_MAX_NAME_BYTES = 150
_KINETICS_NAME = re.compile(r"(.+)_(\d{6})_(\d{6})")


def output_names(records: Sequence[VideoRecord], classes: Sequence[str], *, below: str = "") -> list[str]:
    """`[below/][class/]stem[_start-endms].mp4` for each record, all different even if case does not count.

    A name does not depend on the order of the records, nor on the other records unless two would have the same name.

    Raises:
        ValueError: for a repeated record.
    """
    names = [_name(record, classes, below) for record in records]
    counts = Counter(name.lower() for name in names)
    for place, record in enumerate(records):
        if counts[names[place].lower()] > 1:
            identity = repr((os.fsencode(record.path), record.start_seconds, record.end_seconds))
            names[place] += f"-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    (twice, count), *_ = Counter(name.lower() for name in names).most_common(1) or [("", 0)]
    if count > 1:
        raise SettingError(f"manifest must have each video once, got one twice ({twice}). Remove one of the two.")
    return [f"{name}.mp4" for name in names]


def sample_keys(names: Sequence[str]) -> list[str]:
    """Keys in a shard of files with different names: all different and without dots, where WebDataset ends a key."""
    keys = [_clean(os.path.splitext(name)[0]).replace(".", "_") for name in names]
    counts = Counter(key.lower() for key in keys)
    return [
        f"{key}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:10]}" if counts[key.lower()] > 1 else key
        for name, key in zip(names, keys, strict=True)
    ]


def stem_of(path: str) -> str:
    """A video's name without folders, shard and extension."""
    name = split_path(path)[1] if is_member(path) else path
    return os.path.splitext(os.path.basename(name.rstrip("/")))[0]


def with_raw_videos(manifest: Manifest, root: str | os.PathLike[str]) -> Manifest:
    """Put whole videos, as downloaded, with their segments in place of missing cut ones of an official Kinetics list.

    The list's paths end in `<youtube_id>_<start>_<end>.mp4`; the whole videos are `<youtube_id>.<extension>` in any
    folder below `root`.
    """
    if not manifest.missing:
        return manifest
    found: dict[str, str] = {}
    for below, name, there in walk_videos(Path(root)):
        if there and name:
            found.setdefault(os.path.splitext(name)[0], str(Path(root) / below / name))
    records = []
    for record in manifest.records:
        match = _KINETICS_NAME.fullmatch(stem_of(record.path)) if record.missing else None
        if match is not None and match[1] in found:
            record = replace(
                record,
                path=found[match[1]],
                start_seconds=float(match[2]),
                end_seconds=float(match[3]),
                missing=False,
            )
        records.append(record)
    return replace(manifest, records=records)


def _name(record: VideoRecord, classes: Sequence[str], below: str) -> str:
    stem = stem_of(record.path)
    while is_video(stem):  # a.mp4.mkv
        stem = os.path.splitext(stem)[0]
    name = _clean(stem)
    if record.start_seconds is not None or record.end_seconds is not None:
        end = "" if record.end_seconds is None else f"{1000 * record.end_seconds:.0f}"
        name += f"_{1000 * (record.start_seconds or 0):.0f}-{end}ms"
    folders = [below] if below else []
    folders += [] if record.label is None else [classes[record.label]]
    return "/".join([*(_clean(folder) for folder in folders), name])


def _clean(name: str) -> str:
    """A name that every file system accepts, without separators of paths and shards."""
    text = os.fsencode(name).decode("utf-8", "replace")
    text = re.sub(r'[\x00-\x1f\x7f/\\"*<>?|:]', "_", text)
    if text.startswith("."):
        text = f"_{text[1:]}"
    data = text.encode()
    if len(data) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(data).hexdigest()[:10]
        text = f"{data[:_MAX_NAME_BYTES].decode('utf-8', 'ignore')}-{digest}"
    return text or "_"
