"""Reads the finished cells of a study and computes means, spreads, differences and pooled accuracies."""

from __future__ import annotations

import contextlib
import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from video_gn.damage import DAMAGE, check_file, in_words, read_object
from video_gn.errors import RunError
from video_gn.files import whole_file
from video_gn.run.directory import METRICS, TEST_PREDICTIONS
from video_gn.run.metrics_file import read_metrics
from video_gn.shown import csv_line, from_csv_cell
from video_gn.study.cells import CellDirectory, CellRecord
from video_gn.study.plan import Cell, Study, clip_of
from video_gn.study.settings import ACCUMULATED, FREE, differences

COLUMNS = (
    "cell", "name", "norm", "clip", "batch_size", "seed", "top1", "top5", "mean_class_accuracy", "num_videos",
    "num_failed", "val_top1", "val_loss", "train_loss", "epochs", "steps", "minutes", "optimizer_batch_size",
)  # fmt: skip
NOT_STARTED = "not started"


@dataclass
class CellResult:
    """Figures of a finished cell."""

    cell: Cell
    record: CellRecord  # what it was run with
    row: dict[str, Any]  # values by the columns of study.csv; None for a figure that does not exist
    # (epoch, mean training loss of the epoch's rows), epochs from 1
    train: list[tuple[int, float]] = field(default_factory=list)
    val: list[tuple[int, float]] = field(default_factory=list)  # (epoch, validation top-1), epochs from 1
    # whether each labelled video was predicted right, by its path; empty without a predictions.csv
    right: dict[str, bool] = field(default_factory=dict)

    @property
    def given(self) -> dict[str, Any]:
        """Settings that the command line added and that matter to the outcome."""
        return {key: self.record.settings.get(key) for key in self.record.extra if not key.startswith(FREE)}


@dataclass
class Results:
    """A study's results so far."""

    study: Study
    cells: list[CellResult]  # results of the finished cells, in the plan's order
    missing: list[tuple[Cell, str]]  # (cell, why) of each other cell
    notes: list[str] = field(default_factory=list)  # sentences that a reader of the table needs
    # (record, test top-1 or None) of each finished pre-training, by norm and seed
    starts: dict[tuple[str, int], tuple[CellRecord, float | None]] = field(default_factory=dict)

    def of(self, norm: str, column: tuple[str, int]) -> list[CellResult]:
        """A line's finished cells in a column, one for each seed."""
        return [r for r in self.cells if r.cell.norm == norm and r.cell.column == column]

    def shown(self, column: tuple[str, int]) -> tuple[str, int]:
        """A column's head: its clip as the finished cells were run, and its batch size."""
        clips = dict.fromkeys(r.cell.clip for r in self.cells if r.cell.column[0] == column[0])
        return " or ".join(clips) or column[0], column[1]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds; no deviation for one seed."""

    mean: float
    deviation: float | None
    count: int


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None without values."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def figure_spread(results: Sequence[CellResult], name: str) -> Spread | None:
    """Spread of a column of study.csv over a line's cells; None if one of them has no such figure."""
    values = [result.row[name] for result in results]
    return None if None in values else spread(values)


def difference_spread(results: Sequence[CellResult], reference: Sequence[CellResult]) -> Spread | None:
    """Spread of top-1's differences to the reference line, each within a seed; None if no seed is in both."""
    by_seed = {result.cell.seed: result.row["top1"] for result in reference}
    pairs = [(result.row["top1"], by_seed.get(result.cell.seed)) for result in results]
    return spread([mine - other for mine, other in pairs if mine is not None and other is not None])


def pooled(results: Sequence[CellResult], num_seeds: int) -> tuple[int, int] | None:
    """Right and tested videos over all seeds of a cross validation, in which each seed tests other videos.

    None if a seed is missing (its videos would be too), if there is only one, or if a video was tested twice.
    """
    return tested_once(results) if len(results) >= max(2, num_seeds) else None


def tested_once(results: Sequence[CellResult]) -> tuple[int, int] | None:
    """Right and tested videos over some seeds; None if a video was tested twice, or if they are not known."""
    tested = [path for result in results for path in result.right]
    if not all(result.right for result in results) or len(set(tested)) < len(tested):
        return None
    return sum(sum(result.right.values()) for result in results), len(tested)


# ---- reading ---------------------------------------------------------------------------------


def collect(study: Study, out: Path) -> Results:
    """Read the finished cells; the others are listed as missing, with the reason."""
    results = Results(study, [], [])
    for cell in () if study.pretrain is None else study.pretrain.cells:
        with contextlib.suppress(RunError, *DAMAGE):  # its cells tell
            directory = CellDirectory(out, cell)
            record = directory.read()
            if record is not None and directory.is_done():
                results.starts[cell.norm, cell.seed] = record, read_object(directory.metrics)["top1"]
    for cell in study.cells:
        try:
            directory = CellDirectory(out, cell)
            state, record = directory.state(study), directory.read()
            if state != "done" or record is None:
                results.missing.append((directory.cell, _why(state, directory, study)))
                continue
            results.cells.append(_read(directory, record))
        except RunError as error:
            results.missing.append((cell, str(error)))
        except DAMAGE as error:
            results.missing.append((cell, f"its files cannot be read: {in_words(error)}"))
    results.notes += _notes(results)
    for result in results.cells[1:]:
        lines = differences(results.cells[0].given, result.given)
        if lines:
            names = f"{results.cells[0].cell.name} and {result.cell.name}"
            results.notes.append(f"{names} differ also in {'; '.join(lines)}.")
            break
    return results


def _why(state: str, directory: CellDirectory, study: Study) -> str:
    record = directory.read()
    if state == "changed" and record is not None:
        return f"started with other settings: {'; '.join(directory.changes(study, record))}"
    if state == "failed" and record is not None:
        return f"failed: {record.failed}"
    start = directory.start
    of_start = None if start is None else start.read()
    if state == "open" and start is not None and of_start is not None and of_start.failed:
        return f"its pre-training {start.cell.name} failed: {of_start.failed}"
    return {"open": NOT_STARTED, "started": "started, not finished", "running": "running"}.get(state, state)


def _read(directory: CellDirectory, record: CellRecord) -> CellResult:
    cell = directory.cell
    if cell.any_clip:
        cell = replace(cell, clip="{}x{}".format(*clip_of(record.settings)))
    test = read_object(directory.metrics)
    for name in ("top1", "top5", "mean_class_accuracy", "num_failed", "coverage", "num_videos"):
        if test[name] is not None and not math.isfinite(test[name]):
            raise ValueError(f"{directory.metrics}: {name} must be a finite number, got {test[name]}")
    rows = read_metrics(directory.path / METRICS)
    train, val, val_loss = (_by_epoch(rows, name) for name in ("train/loss", "val/top1", "val/loss"))
    row = {
        "cell": cell.index,
        **{name: getattr(cell, name) for name in ("name", "norm", "clip", "batch_size", "seed")},
        **{name: test[name] for name in ("top1", "top5", "mean_class_accuracy", "num_failed")},
        "num_videos": round(test["coverage"] * test["num_videos"]),
        "val_top1": val[-1][1] if val else None,
        "val_loss": val_loss[-1][1] if val_loss else None,
        "train_loss": train[-1][1] if train else None,
        "epochs": max((r["epoch"] + 1 for r in rows), default=0),
        "steps": max((r["step"] for r in rows), default=0),
        "minutes": round(record.minutes, 2),
        # clips of one process in a step
        "optimizer_batch_size": cell.batch_size * (record.settings.get(ACCUMULATED) or 1),
    }
    return CellResult(cell, record, row, train, val, _read_right(directory.path / TEST_PREDICTIONS))


def _by_epoch(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """A figure's mean over each epoch's rows; a row's epoch counts from 0."""
    values: dict[int, list[float]] = {}
    for row in rows:
        if name in row and math.isfinite(row[name]):
            values.setdefault(row["epoch"] + 1, []).append(row[name])
    return [(epoch, statistics.fmean(values[epoch])) for epoch in sorted(values)]


def _read_right(path: Path) -> dict[str, bool]:
    if not path.is_file():
        return {}
    check_file(path)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [row for row in csv.DictReader(file) if row["label"]]
    return {from_csv_cell(row["video"]): row["pred"] == row["label"] for row in rows}


def _notes(results: Results) -> list[str]:
    """Sentences on what makes cells differ other than norm, clip and batch size."""
    study, notes = results.study, []
    # Of an epoch: clips; steps where each has several batches, since the last one takes those that are left.
    counts: dict[int, set[float]] = {}
    for result in results.cells:
        row = result.row
        if row["epochs"]:
            clips = row["optimizer_batch_size"] if study.optimizer_batch is None else 1
            counts.setdefault(row["batch_size"], set()).add(row["steps"] * clips / row["epochs"])
    if len({round(value) for values in counts.values() for value in values}) > 1:
        of_sizes = "at batch size" if study.optimizer_batch is None else "with statistics of"
        sizes = ", ".join(f"{_range(values)} {of_sizes} {size}" for size, values in counts.items())
        notes.append(
            "Every cell trains for the same number of epochs. "
            + (
                f"The last incomplete batch of an epoch is left out, so an epoch has (in each process) {sizes} clips."
                if study.optimizer_batch is None
                else f"The last step of an epoch takes the batches that are left, so the steps of an epoch are {sizes}."
            )
        )
    epochs = {result.row["epochs"] for result in results.cells}
    if len(epochs) > 1:
        notes.append(f"Cells were trained for different numbers of epochs: {', '.join(map(str, sorted(epochs)))}.")
    failed = sum(result.row["num_failed"] for result in results.cells)
    if failed:
        notes.append(f"{failed} test videos could not be read, over all cells; accuracies are over the others.")
    return notes


def _range(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.0f}" if f"{low:.0f}" == f"{high:.0f}" else f"{low:,.0f} to {high:,.0f}"


def write_csv(results: Results, path: Path) -> None:
    """Write study.csv: a row for each finished cell, whole or not at all."""
    with whole_file(path) as file:
        file.write(csv_line(COLUMNS))
        for result in results.cells:
            values = (result.row[name] for name in COLUMNS)
            file.write(csv_line(round(v, 6) if isinstance(v, float) else v for v in values))
