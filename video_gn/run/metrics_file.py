"""Formats and reads rows of a run's metrics.csv, without torch."""

from __future__ import annotations

import csv
import io
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
