"""Formats and reads rows of a run's metrics.csv, and says which validation is the best, without torch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video_gn.damage import check_file, in_words

# A row for each of a million steps.
_MAX_BYTES = 128_000_000
# Counts stay below this, so that arithmetic with them is exact.
_MAX_COUNT = 2**53


def format_metrics(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, header: bool) -> str:
    """Rows of a metrics.csv as text; a missing value is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a metrics.csv, as `whole_metrics` gives them; a ValueError names the line of a damaged one."""
    rows, problem = whole_metrics(Path(path))
    if problem:
        raise ValueError(problem)
    return rows


def whole_metrics(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows of a metrics.csv up to its first damaged line, and what is wrong with that; "" if nothing is.

    A last line that a kill cut short is left out, which is no damage.

    Returns:
        For each row the columns that have a value: step, epoch and clips as int, the others as float.

    Raises:
        ValueError: If it is no file; OSError if it cannot be read.
    """
    check_file(path, max_bytes=_MAX_BYTES)
    rows: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]), strict=True)
    try:
        columns = next(lines, [])
        if not {"step", "epoch"} <= set(columns) or len(set(columns)) < len(columns):
            return [], f"line 1: it must name step, epoch and other columns, once each, got {','.join(columns)[:100]}"
        for cells in lines:
            if len(cells) != len(columns):
                raise ValueError(f"a row must have {len(columns)} fields, got {len(cells)}")
            row: dict[str, Any] = {k: float(v) for k, v in zip(columns, cells, strict=True) if v}
            for name in ("step", "epoch", "clips"):
                if name in row or name != "clips":
                    row[name] = _count(name, row.get(name, math.nan))
            rows.append(row)
    except (ValueError, csv.Error) as error:
        return rows, f"line {lines.line_num}: {in_words(error).partition(': ')[2]}"
    return rows, ""


def _count(name: str, value: float) -> int:
    if not (0 <= value < _MAX_COUNT and value == int(value)):
        raise ValueError(f"{name} must be a whole number, got {value:g}")
    return int(value)


def is_best(value: float, best: float | None) -> bool:
    """Whether a validation's figure is the best so far, given the best one before, and its checkpoint `best.ckpt`.

    Of equal ones the later is, since its schedule has come further. Any number is better than NaN.
    """
    return best is None or math.isnan(best) or value >= best


def best_row(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The row whose figure is the best, of rows by step: that of `best.ckpt`, if it is chosen by this figure.

    None if no row has a number there.
    """
    best = None
    for row in rows:
        if not math.isnan(row.get(name, math.nan)) and is_best(row[name], None if best is None else best[name]):
            best = row
    return best
