"""Class folders to columns: `<class>/.../<video>`, also below `train/`, `val/`, `test/`."""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH118

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from video_gn.decoding.frame_folders import NAMES_IN_WORDS
from video_gn.errors import ManifestError
from video_gn.lists.class_names import class_key, distinct_classes, is_slip
from video_gn.lists.file_names import list_dir, walk_videos, warn_of_left_out
from video_gn.lists.lines import extensions, some
from video_gn.lists.listing import ALL_PARTS, Listing, which_part
from video_gn.lists.part_names import list_to_give, part_folder, part_of, sounds_like_part
from video_gn.shown import count

log = logging.getLogger(__name__)


def read_folders(
    root: Path, classes: tuple[str, ...] | None, split: str | None, *, parts: Mapping[str, Path]
) -> Listing:
    """Videos, files or frame folders, of `root/<class>/...`, or of its parts, `root/<part>/<class>/...`.

    They come in the order of the names, as do the classes if none are given. `parts` are those of `find_parts`.

    Raises:
        ManifestError: for an unknown part or class, and a directory without videos in class folders.
    """
    if split is None and len(parts) > 1:
        raise ManifestError(which_part(root, list(parts)))
    tops = dict(parts) or {"": root}
    if split not in (None, ALL_PARTS):
        part = part_folder(root, parts, split)
        if part is None:
            has = f"it has {list(parts)}" if parts else "it has no parts"
            raise ManifestError(f"{root}: split must be the name of a part's folder, got {split!r}; {has}.")
        tops = {split: part}

    # Class, path, folder below the class, whether it is there, part.
    found = [(*video, name) for name, top in tops.items() for video in _videos_by_class(top)]
    found.sort(key=lambda video: video[0])  # stable: parts and names keep their order within a class
    if not found:
        raise ManifestError(
            f"{root}: the directory must hold folders of classes with videos ({extensions()}), or with folders of "
            f"numbered pictures ({NAMES_IN_WORDS}), got none. Is the path right?"
        )
    names = sorted({name for name, *_ in found})
    if classes is None and "" in tops:
        _ask_about_classes_below(root, names, [(name, below) for name, _, below, *_ in found], may_refuse=split is None)
    classes = distinct_classes(names, origin=str(root)) if classes is None else classes
    numbers = {class_key(name): number for number, name in enumerate(classes)}
    unknown = [name for name in names if class_key(name) not in numbers]
    if unknown:
        meant = next(
            (f"Is {new!r} a slip in writing {name!r}? " for new in unknown for name in classes if is_slip(new, name)),
            "",
        )
        raise ManifestError(
            f"{root}: folders must be of the {count(len(classes), 'class', 'classes')} ({some(classes)}), got "
            f"{some(unknown)}. {meant}Add them to the classes, or move them away."
        )
    folders = [below for _, _, below, *_ in found]
    return Listing(
        str(root),
        [path for _, path, *_ in found],
        np.array([numbers[class_key(name)] for name, *_ in found], dtype=np.int32),
        classes,
        np.zeros(len(found), dtype=np.int32),
        np.array([not there for *_, there, _ in found], dtype=bool),
        groups={"folder": folders} if any(folders) else {},
        splits=None if "" in tops else [part for *_, part in found],
    )


def _ask_about_classes_below(
    root: Path, names: Sequence[str], found: Sequence[tuple[str, str]], *, may_refuse: bool
) -> None:
    """Refuse folders that hold the same folders and are called like parts or folds; ask where their names say nothing.

    For classes may hold the same groups of videos; nothing is said of groups that differ in a number, as `person01`.

    Args:
        root: the directory.
        names: its folders.
        found: each video's folder, and the folder below it, "" for none.
        may_refuse: whether to raise ManifestError; else the question is logged.
    """
    below: dict[str, set[str]] = {name: set() for name in names}
    for name, folder in set(found):
        below[name].add(folder.partition("/")[0])
    largest = max(below.values(), key=len)
    shared = [len(folders & largest) for folders in below.values()]
    pairs = zip(shared, below.values(), strict=True)
    are_same = all(count >= 2 and 2 * count > len(folders) for count, folders in pairs)
    if len(names) < 2 or not are_same or "" in set().union(*below.values()) or all(map(part_of, largest)):
        return
    are_numbered = _differ_in_number(names)
    if _differ_in_number(largest) and not are_numbered:
        return
    text = (
        f"{root}: folders must be of classes, got {some(names)}, which all hold the same folders "
        f"({some(sorted(largest))}). If they are parts, give each by itself, --data.train {root / 'FOLDER'} "
        f"--data.val {root / 'FOLDER'}, or write a list; if they are the classes, name them in data.source.classes."
    )
    if may_refuse and (are_numbered or all(map(sounds_like_part, names))):
        raise ManifestError(text)
    log.warning(text)


def _differ_in_number(names: Collection[str]) -> bool:
    """Whether names are the same word with other numbers; numbers alone say nothing."""
    words = {re.sub(r"\d+", "", name) for name in names}
    return len(words) == 1 and words != {""}


def _videos_by_class(top: Path) -> list[tuple[str, str, str, bool]]:
    """Class, path, folder below the class, and whether it is there."""
    folders, loose, has_frames = list_dir(top)
    if has_frames and not loose and not folders:
        raise ManifestError(
            f"{top}: videos must lie in a folder for each class, got numbered pictures, the frames of one video. "
            "Move the folder into a class folder, or write a list."
        )
    if loose and not folders:
        raise ManifestError(
            f"{top}: videos must lie in a folder for each class, got {len(loose)} beside each other "
            f"({loose[0][0]}, ...). Move them into class folders, or {list_to_give(top)}."
        )
    if loose:
        words = count(len(loose), "video in no class folder is", "videos in no class folder are")
        log.warning("%s: %s left out (%s, ...)", top, words, loose[0][0])
    found, empty, frame_folders = [], [], []
    left_out: Counter[str] = Counter()
    for folder in folders:
        path = os.path.join(top, folder)
        videos = list(walk_videos(path, left_out=left_out))
        if not videos:
            empty.append(folder)
        elif videos == [("", "", True)]:
            frame_folders.append(folder)
        else:
            found += [(folder, os.path.join(path, below, name), below, there) for below, name, there in videos]
    if frame_folders and not found:
        raise ManifestError(
            f"{top}: videos must lie in a folder for each class, got {len(frame_folders)} frame folders beside each "
            f"other ({frame_folders[0]}, ...). Move them into class folders, or write a list."
        )
    if frame_folders:
        log.warning("%s: frame folders in no class folder are left out: %s", top, some(frame_folders))
    warn_of_left_out(top, left_out)
    if empty:
        log.warning("%s: folders without videos are left out: %s", top, some(empty))
    return found
