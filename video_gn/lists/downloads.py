"""Lists in the forms in which data sets are downloaded, as tables; each is told by what it holds, or by its name.

Sources: the annotations of UCF101, HMDB51, Something-Something v2, Kinetics, ActivityNet, Diving48 and Jester. All
become columns as those of a csv with a header (`video_gn.lists.csv_lists`), and from there on are read alike.
"""

# os.path, not pathlib: a Path object per file takes seconds for 240,000 files.
# ruff: noqa: PTH118, PTH122, PTH207

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from video_gn.errors import ManifestError
from video_gn.lists.class_names import read_classes, unquoted
from video_gn.lists.file_names import is_video
from video_gn.lists.lines import ListTable, Problems, read_text, some

log = logging.getLogger(__name__)

_NUM_LINES_TRIED = 200
# Folders below the root in which files are looked for.
_DEPTH = 2
_KINETICS_HEADER = ("label", "youtube_id", "time_start", "time_end", "split")


@dataclass(frozen=True)
class RawList:
    """A list as it is stored: lines of text, or the content of json."""

    path: Path  # of a glob of lists the glob
    numbers: Sequence[int] = ()  # 1-based line of each of `lines`
    lines: Sequence[str] = ()
    content: Any = None
    files: tuple[Path, ...] = ()  # that a glob matches

    def match(self, pattern: re.Pattern[str], example: str) -> list[re.Match[str]]:
        """Each line as the pattern has it; ManifestError for those that differ."""
        if self.content is not None:
            raise ManifestError(f"{self.path}: the list must be text, lines like {example!r}, got json. {OTHER_FORMAT}")
        problems, found = Problems(self.path), []
        for number, line in zip(self.numbers, self.lines, strict=True):
            match = pattern.fullmatch(line)
            if match is None:
                problems.add(number, f"a line must be like {example!r}, got {line!r}. Correct it; {OTHER_FORMAT}")
            else:
                found.append(match)
        problems.check()
        return found

    def fits(self, pattern: re.Pattern[str]) -> bool:
        """Whether most lines are as the pattern has them."""
        tried = self.lines[:_NUM_LINES_TRIED]
        return 2 * sum(pattern.fullmatch(line) is not None for line in tried) > len(tried)

    @property
    def objects(self) -> list[Mapping[str, Any]] | None:
        """The objects of a json list, or None for other content."""
        content = self.content
        is_list = isinstance(content, list) and bool(content) and all(isinstance(row, dict) for row in content)
        return content if is_list else None

    def beside(self, *patterns: str) -> tuple[str, ...] | None:
        """The class names of the file beside the list that a data set comes with, or None."""
        found = [path for pattern in patterns for path in sorted(self.path.parent.glob(pattern))]
        if not found:
            return None
        log.info("%s: class names from %s", self.path, found[0])
        return read_classes(found[0])


OTHER_FORMAT = "data.source.format names another form."


def _table(raw: RawList, rows: Sequence[Sequence[str]], header: Sequence[str], numbers: Sequence[int] = (), **more: Any
) -> ListTable:  # fmt: skip
    if not rows:
        raise ManifestError(f"{raw.path}: a list must have at least one video, got none. Is the file complete?")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return ListTable(
        raw.path, list(header), dict(columns), numbers or range(1, len(rows) + 1), has_header=False, **more
    )


# ---- UCF101 and HMDB51 ---------------------------------------------------------------------------

# The folder is the class; some of the files differ from it in case (HandstandPushups/v_HandStandPushups_g01_c01.avi).
_UCF101 = re.compile(
    r"(?P<path>(?:.*/)?(?P<folder>[^/]+)/v_(?P=folder)_g[0-9]+_c[0-9]+\.avi)(?:\s+(?P<number>[0-9]+))?", re.IGNORECASE
)
_UCF101_LINE = "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"


def _is_ucf101(raw: RawList) -> bool:
    """Labels are absent or count from 1 to 101; other projects' lists of the same files count from 0."""
    if not raw.fits(_UCF101):
        return False
    numbers = {match["number"] for line in raw.lines if (match := _UCF101.fullmatch(line))}
    has_classes = (raw.path.parent / "classInd.txt").is_file() and "0" not in numbers
    return numbers == {None} or "101" in numbers or has_classes


def _read_ucf101(raw: RawList) -> ListTable:
    found = raw.match(_UCF101, _UCF101_LINE)
    classes = raw.beside("classInd.txt")
    names = {} if classes is None else {str(number): name for number, name in enumerate(classes, start=1)}
    problems = Problems(raw.path)
    for line, match in zip(raw.numbers, found, strict=True):
        folder, number = match["folder"], match["number"]
        if number is not None and names.setdefault(number, folder) != folder:
            text = f"label {number} must be the class of its folder, got {folder!r} where it is {names[number]!r}"
            problems.add(line, f"{text}. {OTHER_FORMAT}")
    if len(set(names.values())) < len(names):
        problems.add(
            raw.numbers[0], f"each class must have one label, got {some(sorted(names.items()))}. {OTHER_FORMAT}"
        )
    problems.check()
    if classes is None and names:
        classes = tuple(names[number] for number in sorted(names, key=int))
    rows = [(match["path"], match["folder"]) for match in found]
    return _table(raw, rows, ("path", "label"), raw.numbers, classes=classes)


_HMDB51_NAME = re.compile(r"(?P<label>.+)_test_split(?P<split>[0-9]+)\.txt")
_HMDB51 = re.compile(r"(?P<name>\S.*\.avi)\s+(?P<part>[012])")
_HMDB51_PARTS = {"1": "train", "2": "test"}


def _is_hmdb51(raw: RawList) -> bool:
    return all(_HMDB51_NAME.fullmatch(path.name) for path in raw.files or (raw.path,)) and raw.fits(_HMDB51)


def _one_of_hmdb51(path: Path, pattern: Path) -> ManifestError:
    return ManifestError(f"{path}: HMDB51 has one file for each class. Give them all, in quotes: '{pattern}'")


def refuse_folder_of_lists(folder: Path) -> None:
    """Raise ManifestError for the folder of HMDB51's lists, with the glob to give instead."""
    pattern = "*_test_split1.txt"
    if any(folder.glob(pattern)):
        raise _one_of_hmdb51(folder, folder / pattern)


def _read_hmdb51(raw: RawList) -> ListTable:
    """One file for each class and split, so that a list is a glob of files."""
    if not raw.files:
        match = _HMDB51_NAME.fullmatch(raw.path.name)
        raise _one_of_hmdb51(raw.path, raw.path.parent / f"*_test_split{match['split'] if match else 1}.txt")
    rows, unused = [], 0
    for path in raw.files:
        name = _HMDB51_NAME.fullmatch(path.name)
        if name is None:
            raise ManifestError(f"{path}: a list of HMDB51 must be called 'brush_hair_test_split1.txt'. {OTHER_FORMAT}")
        for match in RawList(path, *read_text(path)).match(_HMDB51, "NAME.avi 1"):
            part = _HMDB51_PARTS.get(match["part"])
            if part is None:
                unused += 1
            else:
                rows.append((f"{name['label']}/{match['name']}", name["label"], part))
    splits = {match["split"] for path in raw.files if (match := _HMDB51_NAME.fullmatch(path.name))}
    if len(splits) > 1:
        raise ManifestError(f"{raw.path}: a run must use one split, got {sorted(splits)}. Give '*_test_split1.txt'.")
    if unused:
        log.info("%s: %d videos are in neither part of split %s", raw.path, unused, *splits)
    return _table(raw, rows, ("path", "label", "split"), [0] * len(rows))


# ---- lists of ids ----------------------------------------------------------------------------------

_JESTER = re.compile(r"(?P<id>[0-9]+)\s*;\s*(?P<label>[^;]*\S)")
_JESTER_TEST = re.compile(r"(?P<id>[0-9]+)(?:\s*;\s*(?P<label>[^;]*\S))?")


def _read_jester(raw: RawList) -> ListTable:
    rows = [(match["id"], match["label"] or "") for match in raw.match(_JESTER_TEST, "34870;Drumming Fingers")]
    return _table(raw, rows, ("path", "label"), raw.numbers, are_names=True)


def _keys(raw: RawList) -> set[str]:
    return set(raw.objects[0]) if raw.objects else set()


def _read_ssv2(raw: RawList) -> ListTable:
    problems, rows = Problems(raw.path), []
    for number, row in enumerate(_objects(raw, "id"), start=1):
        # "Holding [something] next to [something]": the labels' file has it without brackets.
        label = row.get("template", "")
        if not isinstance(label, str) or ("label" in row and not label):
            problems.add(number, f"a video's template must be its class, got {label!r}. {OTHER_FORMAT}")
            continue
        rows.append((f"{row['id']}.webm", label.replace("[", "").replace("]", "")))
    problems.check()
    classes = raw.beside("labels.json", "something-something-v2-labels.json")
    return _table(raw, rows, ("path", "label"), classes=classes, are_names=True)


def _read_diving48(raw: RawList) -> ListTable:
    """Its files are cut already, so that frames count from 0; a later start would be a part that has no seconds."""
    problems, rows = Problems(raw.path), []
    for number, row in enumerate(_objects(raw, "vid_name"), start=1):
        if row.get("start_frame", 0) != 0:
            problems.add(
                number,
                f"start_frame must be 0, as in videos that are cut, got {row['start_frame']!r}. Write `path,label,"
                "start_seconds,end_seconds` for parts of longer videos.",
            )
        rows.append((f"{row['vid_name']}.mp4", str(row.get("label", ""))))
    problems.check()
    return _table(raw, rows, ("path", "label"), classes=raw.beside("Diving48*vocab.json"), are_names=True)


def _objects(raw: RawList, key: str) -> list[Mapping[str, Any]]:
    """The objects of a json list, all of which must have a key with a text or a whole number."""
    problems = Problems(raw.path)
    for number, row in enumerate(raw.objects or (), start=1):
        if not isinstance(row.get(key), (str, int)) or row[key] == "":
            problems.add(number, f"an object must have {key!r}, got the keys {sorted(row)}. {OTHER_FORMAT}")
    problems.check()
    if raw.objects is None:
        raise ManifestError(f"{raw.path}: the list must be json, a list of objects with {key!r}. {OTHER_FORMAT}")
    return raw.objects


# ---- ActivityNet and Kinetics ----------------------------------------------------------------------


def _is_activitynet(raw: RawList) -> bool:
    return isinstance(raw.content, dict) and isinstance(raw.content.get("database"), dict)


def _read_activitynet(raw: RawList) -> ListTable:
    """A row for each segment; videos of the test have none, and are whole."""
    if not _is_activitynet(raw):
        raise ManifestError(f'{raw.path}: the list must be json with {{"database": {{ID: ...}}}}. {OTHER_FORMAT}')
    problems = Problems(raw.path)
    rows: list[tuple[str, ...]] = []
    numbers: list[int] = []
    num_empty = num_bare = 0
    for number, (name, video) in enumerate(raw.content["database"].items(), start=1):
        path, part = f"v_{name}.mp4", str(video.get("subset", ""))
        labels: dict[tuple[float, float], str] = {}
        for annotation in video.get("annotations") or ():
            try:
                start, end = map(float, annotation["segment"])
                label = annotation["label"]
            except (KeyError, TypeError, ValueError):
                problems.add(number, f"a segment of {name!r} must have a label and [start, end], got {annotation!r}.")
                continue
            if not 0 <= start < end:
                num_empty += 1
            elif labels.setdefault((start, end), label) != label:
                text = f"one segment of {name!r} must have one label, got {labels[start, end]!r} and {label!r}"
                problems.add(number, f"{text}. Lists with several labels cannot be used: keep one of them.")
        found = [(path, label, repr(start), repr(end), part) for (start, end), label in labels.items()]
        if not found and "test" in part.lower():
            found = [(path, "", "", "", part)]
        num_bare += not found
        rows += found
        numbers += [number] * len(found)
    problems.check()
    for count, what in ((num_empty, "segments that end before they begin"), (num_bare, "videos without a segment")):
        if count:
            log.warning("%s: %d %s are left out", raw.path, count, what)
    header = ("path", "label", "start_seconds", "end_seconds", "split")
    return _table(raw, rows, header, numbers, are_names=True)


_ID = r"[\w-]{11}"
_SECONDS = r"[0-9]+(?:\.[0-9]+)?"
_KINETICS = re.compile(
    rf'(?:(?P<label>"(?:[^"]|"")+"|[^",][^"]*),)?(?P<id>{_ID}),(?P<start>{_SECONDS}),(?P<end>{_SECONDS})'
    r"(?:,(?P<split>[A-Za-z_]+))?(?:,[01])?"
)
_KINETICS_LINE = "testifying,---QUuC4vJs,84,94,validate"


def _is_kinetics(raw: RawList) -> bool:
    content = raw.content
    if isinstance(content, dict):
        first = next(iter(content.values()), None)
        return isinstance(first, dict) and {"annotations", "subset"} <= set(first)
    found = [match for line in raw.lines[:_NUM_LINES_TRIED] if (match := _KINETICS.fullmatch(line))]
    # Without a label and a part it might be `folder num_frames label`.
    return raw.fits(_KINETICS) and all(match["label"] or match["split"] for match in found)


def _read_kinetics(raw: RawList) -> ListTable:
    if isinstance(raw.content, dict):
        rows = []
        for number, (name, video) in enumerate(raw.content.items(), start=1):
            found = video.get("annotations", {}) if isinstance(video, dict) else {}
            try:
                start, end = found["segment"]
            except (KeyError, TypeError, ValueError):
                raise ManifestError(
                    f"{raw.path}:{number}: {name!r} must have annotations with a segment, got {video!r}. {OTHER_FORMAT}"
                ) from None
            rows.append((found.get("label", ""), name, str(start), str(end), str(video.get("subset", ""))))
        return _table(raw, rows, _KINETICS_HEADER)
    fields = ("label", "id", "start", "end", "split")
    found = raw.match(_KINETICS, _KINETICS_LINE)
    texts = [[unquoted(match[name] or "") for name in fields] for match in found]
    return _table(raw, texts, _KINETICS_HEADER, raw.numbers)


# ---- lists that cannot be used ---------------------------------------------------------------------

_AVA = re.compile(rf"{_ID},{_SECONDS}(?:,[01]?(?:\.[0-9]+)?){{4}}(?:,[0-9]*){{1,2}}")
_NO_USE = "Write a list `path,label`, and `start_seconds,end_seconds` for parts of videos."


def refuse_several_labels(raw: RawList) -> None:
    """Raise ManifestError for lists of Charades and AVA, which have several labels a video."""
    if raw.lines and {"id", "actions"} <= set(raw.lines[0].lower().split(",")):
        raise ManifestError(f"{raw.path}:{raw.numbers[0]}: Charades has several labels a video, not one. {_NO_USE}")
    if raw.fits(_AVA) and raw.lines:
        raise ManifestError(
            f"{raw.path}:{raw.numbers[0]}: AVA has several labels for each person's box, not one a video. {_NO_USE}"
        )


# ---- the table -------------------------------------------------------------------------------------


class Form(NamedTuple):
    """A form of lists: whether a list has it, and its table."""

    fits: Callable[[RawList], bool]
    read: Callable[[RawList], ListTable]


FORMS = {
    "kinetics": Form(_is_kinetics, _read_kinetics),
    "ucf101": Form(_is_ucf101, _read_ucf101),
    "hmdb51": Form(_is_hmdb51, _read_hmdb51),
    "ssv2": Form(lambda raw: "template" in _keys(raw) or _keys(raw) == {"id"}, _read_ssv2),
    "activitynet": Form(_is_activitynet, _read_activitynet),
    "diving48": Form(lambda raw: "vid_name" in _keys(raw), _read_diving48),
    "jester": Form(lambda raw: raw.fits(_JESTER), _read_jester),
}


def recognize(raw: RawList) -> str | None:
    """The name of the form that a list has, or None."""
    return next((name for name, form in FORMS.items() if form.fits(raw)), None)


# ---- files -----------------------------------------------------------------------------------------


def find_files(names: Sequence[str], base: Path) -> list[str]:
    """Paths below `base` of names whose ending, and whose folder, a list leaves open; missing ones as they are.

    A file of another ending counts, and a frame folder; of several the one that lies higher up. ActivityNet's `v_` may
    be absent. Each directory is listed once, and none below the level at which most are found: they are the frame
    folders of other lists.
    """
    own = [_stem(name) for name in names]
    stems = {*own, *(stem.removeprefix("v_") for stem in own)}
    found: dict[str, str] = {}
    folders = [""]
    for _ in range(1 + _DEPTH):
        deeper = []
        for folder in folders:
            try:
                with os.scandir(os.path.join(base, folder)) as entries:
                    there = sorted((entry.name, entry.is_dir()) for entry in entries)
            except OSError:  # what cannot be listed cannot be opened either
                continue
            for name, is_dir in there:
                stem = name if is_dir else _stem(name) if is_video(name) else ""
                if stem in stems:
                    found.setdefault(stem, os.path.join(folder, name))
                elif is_dir and not name.startswith("."):
                    deeper.append(os.path.join(folder, name))
        paths = [found.get(stem) or found.get(stem.removeprefix("v_")) or "" for stem in own]
        if 2 * sum(map(bool, paths)) > len(paths):
            break
        folders = deeper
    return [path or name for path, name in zip(paths, names, strict=True)]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if is_video(name) else name


def match_files(pattern: Path) -> tuple[Path, ...]:
    """The files that a glob matches, sorted; () for a path without wildcards."""
    return tuple(map(Path, sorted(glob.glob(str(pattern))))) if glob.has_magic(str(pattern)) else ()
