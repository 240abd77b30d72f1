"""Parts of a data set, for training, validation and test: their names, and their folders."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from video_gn.errors import ManifestError
from video_gn.lists.file_names import holds_frame_folders, list_dir, walk_videos
from video_gn.lists.lines import some

log = logging.getLogger(__name__)

# Names of a part; the first of each row is what the package calls it.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "validate", "validation", "valid", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_PART_OF_WORD = {word: part for part, words in PARTS.items() for word in words}
_WORDS = "|".join(_PART_OF_WORD)
# What a name may have beside the part's: train_set, Val-Split, videos_train, train_256, val2017.
_BESIDE = r"(?:(?:data|sub)?sets?|data|splits?|parts?|videos?|clips?|(?:raw)?frames|\d{3,}+p?)"
_NAME = re.compile(rf"(?:{_BESIDE}[\W_]*)*({_WORDS})(?:[\W_]*{_BESIDE})*", re.IGNORECASE)
_AS_A_WORD = re.compile(rf"(?<![a-z])({_WORDS})(?=(?:{_BESIDE})?(?![a-z]))", re.IGNORECASE)
# What is short for a part too often to mean nothing, and too seldom to be taken for one.
_SHORT = re.compile(r"(?<![a-z])(?:trn?|va|te|tst)(?![a-z])", re.IGNORECASE)


def part_of(name: str) -> str | None:
    """The part that a name means, whatever its case: "Validation", "val_set", "dev" -> "val"; None for other names."""
    match = _NAME.fullmatch(name.strip())
    return _PART_OF_WORD[match[1].lower()] if match else None


def is_part(name: str, split: str) -> bool:
    """Whether a name means the part that is asked for: "validate" and "Val" are "val"."""
    part = part_of(split)
    return part_of(name) == part if part else name.lower() == split.lower()


def part_among_words(name: str) -> str | None:
    """The part that the first such word of a name or path says: "val" of `val_set/0.tar` and `k400-Val-0.tar`."""
    match = _AS_A_WORD.search(name)
    return _PART_OF_WORD[match[1].lower()] if match else None


def sounds_like_part(name: str) -> bool:
    """Whether a name has a part's name, or what may be short for one, among its words: "hmdb_val", "tr"."""
    return part_among_words(name) is not None or bool(_SHORT.search(name))


# ---- folders of parts ------------------------------------------------------------------------------


def find_parts(directory: Path) -> dict[str, Path]:
    """Folders of the parts that a data set's directory has, by "train", "val" and "test"; none if it has classes.

    A part's folder holds folders and no videos, neither files nor frame folders: a class may be called "train" too.

    Raises:
        ManifestError: for two folders of one part, one part beside classes, and parts without class folders.
    """
    folders, *_ = list_dir(directory)
    named = {folder: part for folder in folders if (part := part_of(folder)) is not None}
    parts = {folder: part for folder, part in named.items() if _holds_folders(directory / folder)}
    if not any(_has_videos(directory / folder) for folder in parts):
        _refuse_flat_parts(directory, named, folders)
        parts = _differing_in_a_word(directory, folders)
    found: dict[str, Path] = {}
    for folder, part in parts.items():
        other = found.setdefault(part, directory / folder)
        if other.name != folder:
            raise ManifestError(
                f"{directory}: a part must have one folder, got {other.name!r} and {folder!r} for {part!r}. "
                "Merge them, or move one away."
            )
    others = [folder for folder in folders if folder not in parts and _has_videos(directory / folder)] if parts else []
    if others and len(parts) == 1:
        raise ManifestError(
            f"{directory}: folders must be either parts or classes, got the part {next(iter(parts))!r} beside "
            f"{some(others)}. Move it or them away; if it is a class, give its folder another name."
        )
    if others:
        log.warning("%s: folders beside its parts %s are left out: %s", directory, some([*parts]), some(others))
    return {part: found[part] for part in PARTS if part in found}


def _refuse_flat_parts(directory: Path, named: Mapping[str, str], folders: Sequence[str]) -> None:
    """Raise ManifestError if the only folders with videos are called like several parts, and hold no classes."""
    flat = [folder for folder in named if _has_videos(directory / folder)]
    if len({named[folder] for folder in flat}) > 1 and not any(
        _has_videos(directory / folder) for folder in folders if folder not in named
    ):
        raise ManifestError(
            f"{directory}: the parts {some(flat)} must hold a folder for each class, got videos beside each other. "
            f"Move them into class folders, or {list_to_give(directory / flat[0])}; if these are the classes, give the "
            "folders other names."
        )


def _differing_in_a_word(directory: Path, folders: Sequence[str]) -> dict[str, str]:
    """Parts by folder where the names differ in nothing but numbers at their ends; empty if others have videos.

    Such as "ucf_train" and "ucf_test", "01_train" and "02_val", "trainset1" and "testset1".
    """
    by_rest: dict[tuple[str, str], dict[str, str]] = {}
    for folder in folders:
        for word in _AS_A_WORD.finditer(folder):
            before, after = folder[: word.start()].lower(), folder[word.end() :].lower()
            rest = re.sub(r"^\d+[\W_]*", "", before), re.sub(r"[\W_]*\d+$", "", after)
            by_rest.setdefault(rest, {})[folder] = _PART_OF_WORD[word[1].lower()]
    for parts in by_rest.values():
        if len(set(parts.values())) > 1 and all(
            _holds_folders(directory / folder) if folder in parts else not _has_videos(directory / folder)
            for folder in folders
        ):
            return parts
    return {}


def part_folder(directory: Path, parts: Mapping[str, Path], split: str) -> Path | None:
    """The folder of a part: one of `find_parts`, or any folder of folders by its own name; None if there is none."""
    found = parts.get(part_of(split) or split)
    if found is None and _holds_folders(directory / split):
        return directory / split
    return found


def _holds_folders(folder: Path) -> bool:
    """Whether it holds folders and no videos, neither files nor frame folders."""
    if not folder.is_dir():
        return False
    folders, videos, _ = list_dir(folder)
    return bool(folders) and not videos and not holds_frame_folders(folder, folders)


def _has_videos(folder: Path) -> bool:
    return next(walk_videos(folder), None) is not None


def list_to_give(folder: Path) -> str:
    """What to give instead of a folder of videos without classes: its list, as Hugging Face's have, or a new one."""
    found = next((folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()), None)
    return "write a list" if found is None else f"give its list {found}"
