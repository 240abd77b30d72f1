"""Tars of videos as lists, in WebDataset's layout: `KEY.mp4`, with its label in `KEY.cls`, `KEY.json` or `KEY.txt`.

A tar is read in place: only its headers and the small members with labels are read here. Each process reads all
headers again; a scan writes them down once, as a list.
"""

# os.path, not pathlib: a Path object per member takes seconds for 240,000 of them.
# ruff: noqa: PTH112, PTH113, PTH118, PTH119, PTH122, PTH123, PTH207, PTH208

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from video_gn.decoding.tar_members import Member, join_path, list_members
from video_gn.errors import DecodeError, ManifestError
from video_gn.lists.file_names import ending, is_video, walk_videos, warn_of_left_out
from video_gn.lists.lines import ListTable, Problems
from video_gn.lists.listing import SPLIT_COLUMN
from video_gn.lists.part_names import part_among_words
from video_gn.lists.records import VideoRecord

log = logging.getLogger(__name__)

_SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BRACES = re.compile(r"\{([^{}]*)\}")
# Keys of `KEY.json` that hold the label: its name, its number, or both.
_LABEL_KEYS = ("label", "class", "label_name", "class_name", "cls", "target", "category")
_MAX_LABEL_BYTES = 1 << 24
# With so many videos of which each has a text of its own, texts are descriptions.
_MANY = 20


# ---- which tars ----------------------------------------------------------------------------------


def find_tars(path: str | os.PathLike[str]) -> list[str]:
    """The tars that a path means: one, those in a folder or in its parts' folders, or those of a pattern.

    A pattern ends in ".tar" and has `{000..009}`, `{a,b}` or a glob's `*`, `?`, `[...]`. A folder with videos besides
    its tars is one of videos. Empty for any other path.

    Raises:
        ManifestError: for a compressed tar, and a pattern that names tars which are not there.
    """
    name = os.fspath(path)
    if name.lower().endswith(_COMPRESSED):
        raise ManifestError(f"{name}: a tar must not be compressed: videos are read in place. Decompress it, to .tar.")
    if os.path.isdir(name):
        tars = _tars_in(name)
        parts = [os.path.join(name, entry) for entry in sorted(os.listdir(name)) if part_among_words(entry)]
        tars += [tar for part in parts if os.path.isdir(part) for tar in _tars_in(part)]
        return tars if tars and next(walk_videos(name), None) is None else []
    if not name.endswith(_SUFFIX):
        return []
    if os.path.isfile(name):
        return [name]
    if not _BRACES.search(name) and not glob.has_magic(name):
        return []
    named = _expand(name)
    found = [sorted(glob.glob(one)) if glob.has_magic(one) else [one] * os.path.isfile(one) for one in named]
    missing = [one for one, matches in zip(named, found, strict=True) if not matches]
    if missing:
        raise ManifestError(
            f"{name}: each tar of a pattern must be there, got {len(missing)} of {len(named)} that are not "
            f"({missing[0]}, ...). Is the path right, and the pattern quoted?"
        )
    return list(dict.fromkeys(tar for matches in found for tar in matches))


def _tars_in(folder: str) -> list[str]:
    return sorted(glob.glob(f"{glob.escape(folder)}/*{_SUFFIX}"))


def _expand(pattern: str) -> list[str]:
    """The names of a pattern with braces, as a shell has them: `{008..010}` is 008, 009, 010."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if ends is None:
        words = match[1].split(",")
    else:
        width = max(map(len, ends.groups())) if any(end.startswith("0") for end in ends.groups()) else 0
        words = [f"{number:0{width}d}" for number in range(int(ends[1]), int(ends[2]) + 1)]
    return [name for word in words for name in _expand(f"{pattern[: match.start()]}{word}{pattern[match.end() :]}")]


# ---- what they hold ------------------------------------------------------------------------------


class _Label(NamedTuple):
    """What the members beside a video say of its class."""

    name: str | None = None
    number: int | None = None
    text: str | None = None  # of `KEY.txt`: a class's name, or a description


def tar_records(tars: Sequence[str], source: str) -> list[VideoRecord]:
    """The videos of some tars, in their order, without labels.

    Raises:
        ManifestError: for a tar that is damaged, or has a name that leads out of it.
    """
    left_out: Counter[str] = Counter()
    records = [
        VideoRecord(join_path(tar, name), None, source=source)
        for tar in tars
        for name in _videos_and_labels(_list(tar), left_out)
    ]
    warn_of_left_out(source, left_out)
    return records


def read_tars(tars: Sequence[str], path: Path) -> tuple[ListTable, Path]:
    """The videos of the tars that `path` means as a list with labels, and where its relative paths start.

    Parts come from the tars' names or folders. A row's line is its number, from 1.

    Raises:
        ManifestError: for a tar that is damaged; and for labels that cannot be read, that some videos lack, or that
            contradict each other.
    """
    base = path if path.is_dir() else next(above for above in path.parents if above.is_dir())
    names: list[str] = []
    labels: list[_Label] = []
    splits: list[str] = []
    left_out: Counter[str] = Counter()
    for tar in tars:
        below, videos = os.path.relpath(tar, base), _videos_and_labels(_list(tar), left_out)
        with open(tar, "rb", buffering=0) as file:
            labels += [_read_label(file, tar, beside) for beside in videos.values()]
        names += [join_path(below, name) for name in videos]
        splits += [part_among_words(below) or ""] * len(videos)
    if not names:
        raise ManifestError(f"{path}: tars must have at least one video, got none. Is the path right?")
    warn_of_left_out(path, left_out)
    columns: dict[str, Sequence[str]] = {"path": names}
    if (column := _label_column(labels, names, path)) is not None:
        columns["label"] = column
    parts = sorted(set(splits) - {""})
    if len(parts) > 1:
        if "" in splits:
            raise ManifestError(
                f"{path}: all tars or none must be named after a part, got {names[splits.index('')]!r} beside others "
                f"of {parts}. Give each part a pattern of its own."
            )
        columns[SPLIT_COLUMN] = splits
    return ListTable(path, list(columns), columns, range(1, len(names) + 1), has_header=False), base


def _list(tar: str) -> dict[str, Member | None]:
    try:
        return list_members(tar)
    except DecodeError as error:
        raise ManifestError(f"{error}.") from error


def _videos_and_labels(
    members: dict[str, Member | None], left_out: Counter[str]
) -> dict[str, dict[str, tuple[str, Member]]]:
    """By a video's name its members with labels, by their endings; counts the endings of what is neither."""
    by_name = {os.path.join(os.path.split(name)[0], _lower_ending(name)): name for name in members}
    videos: dict[str, dict[str, tuple[str, Member]]] = {}
    used = set()
    for name, place in members.items():
        folder, base = os.path.split(name)
        if place is None or not is_video(base) or base.startswith("."):
            continue
        # WebDataset's key ends at the first dot; a file's name may have more of them.
        stems = (os.path.splitext(base)[0], base.partition(".")[0])
        beside: dict[str, tuple[str, Member]] = {}
        for label_ending in (".cls", ".json", ".txt"):
            for stem in stems:
                label_name = by_name.get(os.path.join(folder, stem + label_ending))
                label = None if label_name is None else members[label_name]
                if label_name is not None and label is not None:
                    beside.setdefault(label_ending, (label_name, label))
                    used.add(label_name)
        videos[name] = beside
    left_out.update(
        ending(name) if place is not None else "link or sparse file"
        for name, place in members.items()
        if name not in videos and name not in used and not os.path.basename(name).startswith(".")
    )
    return videos


def _lower_ending(name: str) -> str:
    stem, suffix = os.path.splitext(os.path.basename(name))
    return stem + suffix.lower()


# ---- labels --------------------------------------------------------------------------------------


def _read_label(file: IO[bytes], tar: str, beside: dict[str, tuple[str, Member]]) -> _Label:
    label = _Label()
    for suffix, (name, member) in beside.items():
        where = join_path(tar, name)
        if member.size > _MAX_LABEL_BYTES:
            raise ManifestError(f"{where}: a label must be short, got {member.size} bytes. Is it something else?")
        try:
            text = os.pread(file.fileno(), member.size, member.offset).decode("utf-8-sig").strip()
            if suffix == ".cls":
                label = _with_value(label, _value_of(text), where)
            elif suffix == ".json":
                label = _from_json(label, json.loads(text), where)
            else:
                label = label._replace(text=text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{where}: the label must be text or json, got something else ({error}).") from error
    return label


def _value_of(text: str) -> str | int:
    return int(text) if re.fullmatch(r"-?\d+", text, re.ASCII) else text


def _from_json(label: _Label, content: Any, where: str) -> _Label:
    values = [content[key] for key in _LABEL_KEYS if key in content] if isinstance(content, dict) else [content]
    for value in values:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, list | dict):
            raise ManifestError(f"{where}: a video must have one label, got {value!r}. Several are not supported.")
        if isinstance(value, str) and value.strip():
            label = _with_value(label, _value_of(value.strip()), where)
        elif isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
            label = _with_value(label, int(value), where)
    return label


def _with_value(label: _Label, value: str | int, where: str) -> _Label:
    if isinstance(value, str):
        if len(value.splitlines()) > 1:
            raise ManifestError(f"{where}: a label must be one line, got {value[:60]!r}. Is it a description?")
        return label._replace(name=label.name or value or None)  # a second name is a category or the like
    if label.number is not None and label.number != value:
        raise ManifestError(
            f"{where}: a video must have one label, got {label.number} and {value}. Remove one of them."
        )
    return label._replace(number=value)


def _label_column(labels: Sequence[_Label], names: Sequence[str], path: Path) -> list[str] | None:
    """Classes by name if all videos have one, else by number, else by the texts beside them; None without labels."""
    by_name = [label.name or "" for label in labels]
    by_number = ["" if label.number is None else str(label.number) for label in labels]
    if all(by_name):
        _check_pairs(labels, names, path)
        return by_name
    if all(by_number):
        return by_number
    texts = [label.text or "" for label in labels]
    column = texts if not any(by_name + by_number) else [a or b for a, b in zip(by_name, by_number, strict=True)]
    if not any(column):
        log.warning("%s: no video has a label, in .cls, .txt, or .json under %s", path, ", ".join(_LABEL_KEYS))
        return None
    if column is texts and len(texts) >= _MANY and len(set(texts)) == len(texts):
        log.warning("%s: each .txt differs, so they are descriptions, not labels (%r, ...)", path, texts[0][:60])
        return None
    problems = Problems(path)
    for number, (text, name) in enumerate(zip(column, names, strict=True), 1):
        if not text:
            problems.add(number, f"all videos must have a label or none, got none for {name!r}. Is the tar complete?")
        elif len(text.splitlines()) > 1:
            problems.add(number, f"a label must be one line, got {text[:60]!r} for {name!r}.")
    problems.check()
    if column is not texts:
        first = names[by_name.index("")]
        raise ManifestError(f"{path}: labels must all be names or all be numbers, got a number alone for {first!r}.")
    return column


def _check_pairs(labels: Sequence[_Label], names: Sequence[str], path: Path) -> None:
    """Refuse a class with two numbers, and a number of two classes."""
    numbers: dict[str, int] = {}
    classes: dict[int, str] = {}
    for label, video in zip(labels, names, strict=True):
        if label.name is None or label.number is None:
            continue
        number, name = numbers.setdefault(label.name, label.number), classes.setdefault(label.number, label.name)
        if (name, number) != label[:2]:
            raise ManifestError(
                f"{path}: a class must have one name and one number, got {label.name!r} with {label.number} for "
                f"{video!r}, and {name!r} with {number} before. Are .cls and .json of the same classes?"
            )
