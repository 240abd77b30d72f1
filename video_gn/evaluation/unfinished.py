"""Scores of a test or prediction so far, from which a stopped one resumes: `test/unfinished/` or `predict/unfinished/`.

    about.json        settings of the test; another checkpoint, configuration or list starts anew
    001-00002.jsonl   a line for each video that rank 2 of the first start has scored, or could not read
    001-00002.f32     scores of those videos, float32 (views, classes) each, in the order of the lines

A prediction's lines hold the labels themselves, and no scores.

Each start writes files of its own, never into an earlier start's. A video's scores are written before its line, and the
line has a checksum of them and of itself: what a kill or a full disk has cut off is noticed, and scored again.

Shape letters: K views of a video, Y classes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from video_gn.clips import Failure
from video_gn.damage import DAMAGE, read_object, set_damaged_aside
from video_gn.files import naming_unwritable, write_json
from video_gn.journal import Journal, decode, encode, whole_lines, write_all
from video_gn.run.checkpoint_files import environment, environment_differences
from video_gn.run.saved_config import config_differences

log = logging.getLogger(__name__)

_VERSION = 1


@dataclass(frozen=True)
class Place:
    """Where a video's scores of shape (K, Y) lie; the label is -1 if the video has none."""

    path: Path
    row: int
    label: int
    shape: tuple[int, int]

    def read(self) -> npt.NDArray[np.float32]:
        """The scores, float32 (K, Y)."""
        with self.path.open("rb") as file:
            return _read_row(file, self.row, self.shape)


@dataclass(frozen=True)
class Kept:
    """What earlier starts of a test or prediction have left."""

    start: int = 1  # number of this start, from 1
    places: dict[int, Place] = field(default_factory=dict)  # by video id
    results: dict[int, dict[str, Any]] = field(default_factory=dict)  # a prediction's, in place of places
    failures: dict[int, Failure] = field(default_factory=dict)  # by video id; these videos have neither

    @property
    def video_ids(self) -> frozenset[int]:
        """Videos that need not be read again."""
        return frozenset(self.places) | frozenset(self.results) | frozenset(self.failures)


class Unfinished:
    """The folder of an unfinished test or prediction: rank 0 opens and removes it, all ranks write into it."""

    def __init__(self, directory: Path, *, what: str = "test") -> None:
        self.directory = directory
        self.what = what

    def open(self, settings: Mapping[str, Any] | None) -> Kept:
        """Read what is there; start anew if it was made with other settings (in plain containers), or with None."""
        about = {"version": _VERSION, "settings": settings, "environment": environment()}
        place = self.directory / "about.json"
        there = _read_json(place)
        differences = ["its settings are not known"]
        if there is not None and settings is not None:
            # As JSON has it, with lists for tuples. Another environment is only warned of.
            wanted = {**json.loads(json.dumps(about)), "environment": there["environment"]}
            differences = config_differences(there, wanted)
        if there is not None and not differences:
            for line in environment_differences(there["environment"]):
                log.warning("scores of this start and the last may differ in their rounding: %s", line)
            return self._read()
        if self.directory.is_dir() and there is None:
            set_damaged_aside(self.directory, "its settings are not known", f"The {self.what} is starting anew.")
        elif self.directory.is_dir():
            words = "%s belongs to another %s (%s): starting anew"
            log.warning(words, self.directory, self.what, "; ".join(differences[:3]))
        shutil.rmtree(self.directory, ignore_errors=True)
        write_json(place, about)
        return Kept()

    def _read(self) -> Kept:
        places: dict[int, Place] = {}
        results: dict[int, dict[str, Any]] = {}
        failures: dict[int, Failure] = {}
        last = 0
        for path in sorted(self.directory.iterdir()):
            number = path.name.partition("-")[0]
            last = max(last, int(number) if number.isdecimal() else 0)
            for entry in _entries(path) if path.suffix == ".jsonl" and path.is_file() else ():
                if isinstance(entry, Failure):
                    failures.setdefault(entry.video_id, entry)
                elif isinstance(entry[1], Place):
                    places.setdefault(entry[0], entry[1])
                else:
                    results.setdefault(entry[0], entry[1])
        done = places.keys() | results.keys()
        return Kept(last + 1, places, results, {i: f for i, f in failures.items() if i not in done})

    def files(self, start: int, rank: int) -> ScoreFiles:
        """New files of a rank."""
        return ScoreFiles(self.directory / f"{start:03d}-{rank:05d}")

    def remove(self) -> None:
        """Remove the folder: all is done."""
        shutil.rmtree(self.directory)


class ScoreFiles:
    """Two files of one rank; `stem` is their path without the ending."""

    def __init__(self, stem: Path) -> None:
        self.path, self.num_rows = stem.with_suffix(".f32"), 0
        with naming_unwritable(self.path):
            self._scores = self.path.open("wb", buffering=0)
        self._lines = Journal(stem.with_suffix(".jsonl"))
        self._lines.start()

    def add(self, video_id: int, path: str, label: int, scores_KY: npt.NDArray[np.float32]) -> Place:
        """Keep a video's scores; errors are those of `video_gn.journal.write_all`."""
        data = np.ascontiguousarray(scores_KY).tobytes()
        place = Place(self.path, self.num_rows, label, (scores_KY.shape[0], scores_KY.shape[1]))
        write_all(self._scores, data)
        self._add({"video": video_id, "path": path, "label": label, "shape": list(place.shape)}, data)
        self.num_rows += 1
        return place

    def add_result(self, video_id: int, result: dict[str, Any]) -> None:
        """Keep a video's labels; errors as `add`."""
        self._add({"video": video_id, "result": result})

    def add_failure(self, failure: Failure) -> None:
        """Note that a video cannot be read; errors as `add`."""
        self._add({"video": failure.video_id, "path": failure.path, "reason": failure.reason})

    def _add(self, entry: dict[str, Any], data: bytes = b"") -> None:
        self._lines.add({**entry, "check": _checksum(entry, data)})

    def close(self) -> None:
        """Close both files."""
        self._scores.close()
        self._lines.close()


def _checksum(entry: Mapping[str, Any], data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(encode(list(entry.items()))))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = read_object(path)
    except DAMAGE:
        return None
    is_whole = {"version", "settings"} <= content.keys() and isinstance(content.get("environment"), dict)
    return content if is_whole else None


def _entries(lines: Path) -> Iterator[tuple[int, Place | dict[str, Any]] | Failure]:
    """Entries up to the first line whose scores are not whole."""
    path, row = lines.with_suffix(".f32"), 0
    if not path.is_file():
        return
    with path.open("rb") as scores:
        for line in whole_lines(lines):
            try:
                found = _entry(decode(line), scores, row)
            except DAMAGE:
                log.info("%s: line %d is damaged; its video and any after it are scored again", lines, row + 1)
                return
            yield found
            row += not isinstance(found, Failure) and isinstance(found[1], Place)


def _entry(entry: Any, scores: IO[bytes], row: int) -> tuple[int, Place | dict[str, Any]] | Failure:
    """What a line and its scores say; a ValueError, or another of `DAMAGE`, for damaged ones."""
    check = entry.pop("check", None)  # earlier versions had the scores' alone
    data, shape = b"", (0, 0)
    if not entry.keys() & {"reason", "result"}:
        shape = (int(entry["shape"][0]), int(entry["shape"][1]))
        data = _read_row(scores, row, shape).tobytes()
    if (_checksum(entry, data) != check) if check is not None else (zlib.crc32(data) != entry.get("crc32", 0)):
        raise ValueError("other scores")
    if "reason" in entry:
        return Failure(int(entry["video"]), str(entry["path"]), str(entry["reason"]))
    if "result" in entry:
        return int(entry["video"]), dict(entry["result"])
    return int(entry["video"]), Place(Path(scores.name), row, int(entry["label"]), shape)


def _read_row(file: IO[bytes], row: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    size = shape[0] * shape[1] * 4
    if not 0 < size <= os.fstat(file.fileno()).st_size:
        raise ValueError(f"scores must have a shape that the file holds, got {shape}")
    file.seek(row * size, os.SEEK_SET)
    return np.frombuffer(file.read(size), np.float32).reshape(shape)
