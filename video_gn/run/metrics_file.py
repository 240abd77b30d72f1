"""Formats and reads rows of a run's metrics.csv, and says which validation is the best, without torch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def format_metrics(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, header: bool) -> str:
    """Rows of a metrics.csv as text; a missing value is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a metrics.csv; a last line that a kill cut short is left out.

    Returns:
        For each row the columns that have a value: step, epoch and clips as int, the others as float.
    """
    text = Path(path).read_text()
    whole = text[: text.rfind("\n") + 1]
    rows = []
    for raw in csv.DictReader(io.StringIO(whole)):
        row: dict[str, Any] = {k: float(v) for k, v in raw.items() if v not in (None, "")}
        row.update({name: int(row[name]) for name in ("step", "epoch", "clips") if name in row})
        rows.append(row)
    return rows


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
