"""Reads a run directory. A file that is missing or damaged is noted, never fatal."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from video_gn.damage import DAMAGE, MAX_BYTES, MAX_SETTINGS_BYTES, check_file, in_words, read_object, read_settings
from video_gn.errors import RunError
from video_gn.report.analysis import Predictions, natural_order
from video_gn.report.views import ViewScores, open_scores
from video_gn.run.directory import (
    CONFIG,
    METRICS,
    RESUME_CONFIGS,
    TEST_CONFIG,
    TEST_METRICS,
    TEST_PREDICTIONS,
    TEST_SCORES,
)
from video_gn.run.metrics_file import whole_metrics
from video_gn.shown import count, from_csv_cell

Value = TypeVar("Value")

# What each file holds and who writes it, in the order of the page's table.
FILES: Mapping[str, str] = {
    CONFIG: "resolved settings of the training, written by video-gn fit",
    METRICS: "training curves, written by video-gn fit",
    TEST_CONFIG: "settings of the test, written by video-gn test",
    TEST_METRICS: "accuracies of the test, written by video-gn test",
    TEST_PREDICTIONS: "a prediction for each video, written by video-gn test",
    TEST_SCORES: "scores of each view, written by video-gn test",
}
MISSING = "missing"
AFTER_RESUME, IN_TEST = "after the last resume", "in the test"
_PREDICTION_COLUMNS = ("video", "label", "pred", "score", "top5")
# More resumes than anyone looks through; the newest are shown.
_MAX_RESUMES = 50
# Larger figures are damage.
_MAX_FIGURE = 1e15


@dataclass(frozen=True)
class FileNote:
    """The state of one file."""

    name: str  # path relative to the run directory
    purpose: str  # what it holds
    # what is wrong with it, as the rest of a sentence; "" if nothing is, `MISSING` if there is none
    problem: str = MISSING
    num_bytes: int = 0  # its size; 0 if it is missing
    changed: str = ""  # UTC time of its last change; "" if it is missing


@dataclass(frozen=True)
class ClipAccuracies:
    """Top-1 accuracy by the number of clips whose scores are averaged."""

    num_clips: list[int]  # numbers of clips, rising
    top1: list[float]  # accuracy for each of them
    single_view: float  # accuracy of a view alone, the mean over all views


@dataclass
class Run:
    """A run directory's contents; what could not be read stays empty."""

    directory: Path  # as the caller gave it
    # state of each file, in the order of `FILES`, then the configs of resumes
    notes: dict[str, FileNote] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.csv, by step
    configs: dict[str, str] = field(default_factory=dict)  # text of each config
    num_earlier_resumes: int = 0  # resumes whose configs are left out
    # config.yaml parsed, or test/config.yaml if there is no other
    config: Mapping[str, Any] = field(default_factory=dict)
    # the same of what ran later, if it could be read: of the last resume, of the test
    later: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)  # contents of test/metrics.json
    predictions: Predictions | None = None  # contents of test/predictions.csv
    scores: ViewScores | None = None  # where the scores of test/scores.npz lie

    def setting(self, key: str) -> Any:
        """As `value_of`, of its config."""
        return value_of(self.config, key)

    def shown_setting(self, key: str) -> str | None:
        """A setting as text, with what it was later if that is something else; None if it was never there."""
        value = self.setting(key)
        later = {when: value_of(config, key) for when, config in self.later.items()}
        others = "".join(f"; {when} {other}" for when, other in later.items() if other is not None and other != value)
        return f"{'' if value is None else value}{others}".removeprefix("; ") or None

    def number(self, key: str) -> float | None:
        """A finite number of test/metrics.json; None if there is none."""
        value = self.test.get(key)
        usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_FIGURE
        return float(value) if usable else None  # type: ignore[arg-type]

    @property
    def clip_curve(self) -> ClipAccuracies | None:
        """`by_num_clips` of test/metrics.json; None if it is missing, as in tests of earlier versions, or unusable."""
        try:
            values = self.test["by_num_clips"]
            num_clips, top1 = [int(number) for number in values["num_clips"]], [float(a) for a in values["top1"]]
            curve = ClipAccuracies(num_clips, top1, float(values["top1_single_view"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        finite = all(abs(figure) < _MAX_FIGURE for figure in [*num_clips, *top1, curve.single_view])
        return curve if finite and len(num_clips) == len(top1) > 0 else None

    @property
    def failed(self) -> list[tuple[str, str]]:
        """(path, reason) of the videos that the test could not read."""
        entries = self.test.get("failed")
        found = [e for e in entries if isinstance(e, Mapping)] if isinstance(entries, list) else []
        return [(_text(e.get("path")), _text(e.get("reason"))) for e in found]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """A config's value by its dotted key; None if it is not there."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def read_run(directory: Path, name: str = "run_dir") -> Run:
    """Read a run directory; `name` is that of the argument or option that gave it.

    Raises:
        RunError: if there is no such directory, or it holds none of a run's files.
    """
    if not directory.is_dir():
        raise RunError(f"{name} must be a directory, got {str(directory)!r}. Give the --run_dir of a fit or test.")
    if not any((directory / name).is_file() for name in FILES):
        raise RunError(
            f"{name} must hold at least one of {', '.join(FILES)}, got {str(directory)!r} with none of them. "
            "Train or test with this --run_dir first."
        )
    run = Run(directory)
    resumes = sorted(p.name for p in directory.glob(RESUME_CONFIGS))
    run.num_earlier_resumes = max(0, len(resumes) - _MAX_RESUMES)
    for name in (CONFIG, TEST_CONFIG, *resumes[-_MAX_RESUMES:]):
        text = _read(run, name, _read_text, "", max_bytes=MAX_SETTINGS_BYTES)
        if text:
            run.configs[name] = text
    for name in (CONFIG, TEST_CONFIG):
        if not run.notes[name].problem and not run.config:
            run.config = _read(run, name, read_settings, {})
    resumes = [name for name in run.configs if name not in (CONFIG, TEST_CONFIG)]
    for when, names in ((AFTER_RESUME, resumes[-1:]), (IN_TEST, [TEST_CONFIG])):
        for name in names:
            run.later[when] = _read(run, name, read_settings, {})
    no_rows: tuple[list[dict[str, Any]], str] = [], ""
    run.rows, problem = _read(run, METRICS, whole_metrics, no_rows)
    if problem:
        rows = count(len(run.rows), "row before it is", "rows before it are")
        shown = f"only the {rows} shown" if run.rows else "nothing of it is shown"
        run.notes[METRICS] = replace(run.notes[METRICS], problem=f"is damaged at {problem}; {shown}")
    run.rows.sort(key=lambda row: row["step"])
    run.test = _read(run, TEST_METRICS, read_object, {})
    run.predictions = _read(run, TEST_PREDICTIONS, read_predictions, None)
    run.scores = _read(run, TEST_SCORES, open_scores, None, max_bytes=2**63)
    order = {name: place for place, name in enumerate(FILES)}
    run.notes = dict(sorted(run.notes.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
    return run


def _read(
    run: Run, name: str, reader: Callable[[Path], Value], otherwise: Value, *, max_bytes: int = MAX_BYTES
) -> Value:
    """What a reader makes of a file, which no link may lead out of the run to; notes the state."""
    path = run.directory / name
    purpose = FILES.get(name, "settings of a resume, written by video-gn fit")
    if not os.path.lexists(path):
        run.notes[name] = FileNote(name, purpose)
        return otherwise
    problem = ""
    value = otherwise
    try:
        check_file(path, within=run.directory, max_bytes=max_bytes)
        value = reader(path)
    except DAMAGE as error:
        problem = f"cannot be read: {in_words(error)}"
    status = path.lstat()
    changed = datetime.fromtimestamp(status.st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    run.notes[name] = FileNote(name, purpose, problem, status.st_size, changed)
    return value


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def read_predictions(path: Path) -> Predictions:
    """Read a test/predictions.csv.

    Raises:
        ValueError: for a missing column, a short row or a score that is no number in [0, 1] or NaN; it names the line.
    """
    videos: list[str] = []
    labels: list[str] = []
    preds: list[str] = []
    scores: list[float] = []
    ranks: list[int] = []
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
            video, label, pred, top5 = (from_csv_cell(row[column[name]]) for name in ("video", "label", "pred", "top5"))
            try:
                scores.append(float(row[column["score"]]))
            except ValueError as error:
                raise ValueError(f"line {lines.line_num}: {error}") from error
            if not (0 <= scores[-1] <= 1.001 or math.isnan(scores[-1])):
                raise ValueError(f"line {lines.line_num}: a score must be in [0, 1], got {scores[-1]:g}")
            videos.append(video)
            labels.append(label)
            preds.append(pred)
            ranks.append(rank_in_top5(label, pred, top5))
    classes = natural_order({*labels, *preds} - {""})
    number = {name: place for place, name in enumerate(classes)} | {"": -1}
    return Predictions(
        videos=videos,
        classes=classes,
        labels=np.array([number[name] for name in labels], dtype=np.int64),
        preds=np.array([number[name] for name in preds], dtype=np.int64),
        scores=np.array(scores, dtype=np.float64),
        ranks=np.array(ranks, dtype=np.int64),
    )


def rank_in_top5(label: str, pred: str, top5: str) -> int:
    """Rank of a label among the five best classes: 1 to 5, or 0 if it is none of them.

    `top5` has class names, best first, joined by "|". A name may hold the separator itself ("a|b"), so the list is
    searched and not split; the rank is then an upper bound, at most 5.
    """
    if not label:
        return 0
    if label == pred:
        return 1
    found = f"|{top5}|".find(f"|{label}|")
    return 0 if found < 0 else min(5, 1 + top5[:found].count("|"))
