"""Reads what lies in a run directory. A file that is missing or damaged is noted, never fatal."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from video_gn.errors import RunError
from video_gn.report._npz import ScoresFile
from video_gn.report.analysis import Predictions, ViewCurve, ViewCurveBuilder, natural_order
from video_gn.run.metrics_file import read_metrics

Value = TypeVar("Value")

# What each file is for, and who writes it; the order is that of the page's table.
FILES: Mapping[str, str] = {
    "config.yaml": "the resolved settings, written by video-gn fit",
    "metrics.csv": "the training curves, written by video-gn fit",
    "test/config.yaml": "the settings of the test, written by video-gn test",
    "test/metrics.json": "the test's figures, written by video-gn test",
    "test/predictions.csv": "a prediction for each video, written by video-gn test",
    "test/scores.npz": "the scores of each view, written by video-gn test",
}
_PREDICTION_COLUMNS = ("video", "label", "pred", "score", "top5", "num_views")
# What reading a damaged file raises: OSError and ValueError cover json, utf-8, numpy and zip headers.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, csv.Error, yaml.YAMLError)


@dataclass(frozen=True)
class FileNote:
    """What became of one file.

    Args:
        name: relative to the run directory.
        purpose: what it is for.
        problem: why it could not be read; "" where it could, "missing" where there is none.
        num_bytes: its size; 0 where there is none.
        changed: UTC time of its last change; "" where there is none.
    """

    name: str
    purpose: str
    problem: str
    num_bytes: int
    changed: str


@dataclass
class Run:
    """A run directory's contents; what could not be read stays empty.

    Args:
        directory: as the caller gave it.
        notes: by file name, in the order of `FILES`, then the configs of resumes.
        rows: of metrics.csv.
        configs: text by file name.
        config: config.yaml parsed, or test/config.yaml where that is all there is.
        test: of test/metrics.json.
        predictions: of test/predictions.csv.
        views: accuracies by number of views, from test/scores.npz.
    """

    directory: Path
    notes: dict[str, FileNote] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    configs: dict[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None
    views: ViewCurve | None = None

    def setting(self, key: str) -> Any:
        """A config's value by its dotted key; None where it is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def number(self, key: str) -> float | None:
        """A finite number of test/metrics.json; None where there is none."""
        value = self.test.get(key)
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if usable else None  # type: ignore[arg-type]

    @property
    def failed(self) -> list[tuple[str, str]]:
        """(path, reason) of the videos that the test could not read."""
        entries = self.test.get("failed")
        found = [e for e in entries if isinstance(e, Mapping)] if isinstance(entries, list) else []
        return [(str(e.get("path", "")), str(e.get("reason", ""))) for e in found]


def read_run(directory: Path) -> Run:
    """Read a run directory.

    Args:
        directory: of a run.

    Raises:
        RunError: where there is no such directory, or it holds none of a run's files.
    """
    if not directory.is_dir():
        raise RunError(f"run_dir must be a directory, got {str(directory)!r}. Give the --run_dir of a fit or test.")
    if not any((directory / name).is_file() for name in FILES):
        raise RunError(
            f"run_dir must hold at least one of {', '.join(FILES)}, got {str(directory)!r} with none of them. "
            "Train or test with this --run_dir first."
        )
    run = Run(directory)
    for name in ("config.yaml", "test/config.yaml", *sorted(p.name for p in directory.glob("config.resume-*.yaml"))):
        text = _read(run, name, lambda path: path.read_text(encoding="utf-8", errors="surrogateescape"), "")
        if text:
            run.configs[name] = text
    for name in ("config.yaml", "test/config.yaml"):
        if name in run.configs and not run.config:
            run.config = _read(run, name, _parse_config, {})
    run.rows = _read(run, "metrics.csv", _read_rows, [])
    run.test = _read(run, "test/metrics.json", _read_json, {})
    run.predictions = _read(run, "test/predictions.csv", read_predictions, None)
    run.views = _read(run, "test/scores.npz", lambda path: read_view_curve(path, num_crops=_num_crops(run)), None)
    order = {name: place for place, name in enumerate(FILES)}
    run.notes = dict(sorted(run.notes.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
    return run


def _read(run: Run, name: str, reader: Callable[[Path], Value], otherwise: Value) -> Value:
    path = run.directory / name
    purpose = FILES.get(name, "the settings of a resume, written by video-gn fit")
    if not path.is_file():
        run.notes[name] = FileNote(name, purpose, "missing", 0, "")
        return otherwise
    problem = ""
    value = otherwise
    try:
        value = reader(path)
    except _DAMAGE as error:
        problem = f"cannot be read: {type(error).__name__}: {error}"
    status = path.stat()
    changed = datetime.fromtimestamp(status.st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    run.notes[name] = FileNote(name, purpose, problem, status.st_size, changed)
    return value


def _parse_config(path: Path) -> Mapping[str, Any]:
    value = yaml.safe_load(path.read_text(encoding="utf-8", errors="surrogateescape"))
    if not isinstance(value, Mapping):
        raise ValueError(f"it must hold a mapping, not {type(value).__name__}")
    return value


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return sorted(read_metrics(path), key=lambda row: row["step"])


def _read_json(path: Path) -> Mapping[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"it must hold an object, not {type(value).__name__}")
    return value


def _num_crops(run: Run) -> int:
    return max(1, int(run.number("num_crops") or 1))


def read_predictions(path: Path) -> Predictions:
    """Read a test/predictions.csv.

    Args:
        path: of the file.

    Raises:
        ValueError: for a missing column, a short row or a score that is no number; names the line.
    """
    videos: list[str] = []
    labels: list[str] = []
    preds: list[str] = []
    scores: list[float] = []
    ranks: list[int] = []
    num_views: list[int] = []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        missing = [name for name in _PREDICTION_COLUMNS if name not in header]
        if missing:
            found = ", ".join(header) or "nothing"
            raise ValueError(f"line 1: its columns must hold {', '.join(missing)}, got {found}")
        column = {name: header.index(name) for name in _PREDICTION_COLUMNS}
        for row in lines:
            if len(row) != len(header):
                raise ValueError(f"line {lines.line_num}: a row must have {len(header)} fields, got {len(row)}")
            label, pred = row[column["label"]], row[column["pred"]]
            try:
                scores.append(float(row[column["score"]]))
                num_views.append(int(row[column["num_views"]]))
            except ValueError as error:
                raise ValueError(f"line {lines.line_num}: {error}") from error
            videos.append(row[column["video"]])
            labels.append(label)
            preds.append(pred)
            ranks.append(rank_in_top5(label, pred, row[column["top5"]]))
    classes = natural_order({*labels, *preds} - {""})
    number = {name: place for place, name in enumerate(classes)} | {"": -1}
    return Predictions(
        videos=videos,
        classes=classes,
        labels=np.array([number[name] for name in labels], dtype=np.int64),
        preds=np.array([number[name] for name in preds], dtype=np.int64),
        scores=np.array(scores, dtype=np.float64),
        ranks=np.array(ranks, dtype=np.int64),
        num_views=np.array(num_views, dtype=np.int64),
    )


def rank_in_top5(label: str, pred: str, top5: str) -> int:
    """Place of a label among the five best classes: 1 to 5, or 0 where it is none of them.

    A class name may hold the separator itself ("a|b"), so the list is searched and not split; the place
    is then an upper bound, at most 5.

    Args:
        label: the right class.
        pred: the best class.
        top5: class names, best first, with "|" between them.
    """
    if not label:
        return 0
    if label == pred:
        return 1
    found = f"|{top5}|".find(f"|{label}|")
    return 0 if found < 0 else min(5, 1 + top5[:found].count("|"))


def read_view_curve(path: Path, *, num_crops: int) -> ViewCurve | None:
    """Accuracy by number of clips, from a test/scores.npz, a few MB at a time.

    Args:
        path: of the file.
        num_crops: crops of a clip; where it does not divide the views, each view counts as a clip.

    Returns:
        None where no video has a label.

    Raises:
        ValueError: for arrays of other shapes or types than a test writes, or a damaged archive.
    """
    with ScoresFile(path) as file:
        num_videos, num_views, num_classes = file.shape
        crops = num_crops if num_views % num_crops == 0 else 1
        builder = ViewCurveBuilder(num_clips=num_views // crops, num_crops=crops)
        for first, scores_VKY in file.chunks():
            builder.add(scores_VKY, file.labels[first : first + len(scores_VKY)])
    return builder.finish(num_videos=num_videos, num_classes=num_classes)
