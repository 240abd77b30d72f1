"""Summarizes a scan of a list, in numbers and as tables for a terminal."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from video_gn.lists.records import TextColumn
from video_gn.lists.scan_columns import MISSING, FactColumns
from video_gn.shown import console as shown_console
from video_gn.shown import count

_WIDTH = 80
_NUM_SHOWN = 8
_QUANTILES = {"least": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1.0}


@dataclass(frozen=True)
class PartCount:
    """Rows of a class or part: in the list, on the disk, and without an error."""

    listed: int
    there: int
    readable: int


@dataclass(frozen=True)
class ScanSummary:
    """A scan's results, counted in rows of the list."""

    target: Path  # the manifest
    listed: int  # all rows
    there: int  # rows whose file exists
    readable: int  # rows without an error
    num_probed: int  # files probed in this run; the others were known from an earlier one
    broken: Mapping[str, int]  # rows by error, most frequent first, without missing files
    hours: float  # duration of the readable rows
    quantities: Mapping[str, Mapping[str, float]]  # `num_frames`, `fps` and so on, at quantiles of the readable rows
    sizes: Mapping[str, int]  # readable rows by "width x height", most frequent first
    codecs: Mapping[str, int]  # readable rows by codec, most frequent first
    by_split: Mapping[str, PartCount]  # empty if the list has no parts
    by_class: Mapping[str, PartCount]  # empty if the list has no labels

    @property
    def missing(self) -> int:
        """Rows whose file does not exist."""
        return self.listed - self.there

    def text(self) -> str:
        """Tables for a terminal of 80 columns."""
        from rich.table import Table

        console = shown_console(file=io.StringIO(), width=_WIDTH, highlight=False, markup=False, emoji=False)

        def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
            table = Table(title=title, title_justify="left", title_style="")
            for place, name in enumerate(header):
                table.add_column(name, justify="left" if place == 0 else "right", overflow="fold", no_wrap=place > 0)
            for row in rows:
                table.add_row(*row)
            console.print(table)

        parts = [("all", PartCount(self.listed, self.there, self.readable)), *self.by_split.items()]
        show(
            "",
            ("part", "listed", "missing", "broken", "readable"),
            [
                (name, *(f"{n:,}" for n in (c.listed, c.listed - c.there, c.there - c.readable, c.readable)))
                for name, c in parts
            ],
        )
        if self.quantities:
            rows = [(name, *(_number(value) for value in values.values())) for name, values in self.quantities.items()]
            length = f"{self.hours:,.1f} hours" if self.hours >= 1 else f"{60 * self.hours:.1f} minutes"
            show(f"{length} of video", ("readable videos", *_QUANTILES), rows)
            show("", ("size, codec", "videos"), [*_top(self.sizes), *_top(self.codecs)])
        if self.broken:
            show("broken", ("reason", "videos"), _top(self.broken))
        if self.by_class:
            console.print(self._text_of_classes())
        text = console.file.getvalue()
        return "\n".join(line.rstrip() for line in str(text).splitlines()) + "\n"

    def _text_of_classes(self) -> str:
        fewest = sorted(self.by_class.items(), key=lambda item: (item[1].readable, item[0]))
        numbers = [count.readable for count in self.by_class.values()]
        shown = ", ".join(f"{name} ({count.readable} of {count.listed})" for name, count in fewest[:3])
        if min(numbers) == max(numbers):
            classes = count(len(numbers), "class", "classes")
            return f"{classes} of {count(numbers[0], 'readable video')}{' each' if len(numbers) > 1 else ''}"
        return (
            f"{len(numbers)} classes of {min(numbers):,} to {max(numbers):,} readable videos, "
            f"median {float(np.median(numbers)):,.6g}; the fewest: {shown}"
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def _top(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    rows = [(name, f"{number:,}") for name, number in list(counts.items())[:_NUM_SHOWN]]
    rest = sum(list(counts.values())[_NUM_SHOWN:])
    return rows + ([("others", f"{rest:,}")] if rest else [])


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _group(reason: str) -> str:
    """A reason without its numbers, so that "only 70 of 122 frames" and "only 3 of 9 frames" are one."""
    return re.sub(r"\d+(\.\d+)?", "N", reason)


def summarize(
    target: Path,
    facts: FactColumns,
    files: np.ndarray,
    *,
    labels: np.ndarray,
    classes: Sequence[str],
    splits: TextColumn | None,
    num_probed: int,
) -> ScanSummary:
    """Count the rows of a scan: `files` and `labels`, both int (n,), are their files and classes, -1 for none."""
    error_codes, errors = facts.texts("error")
    there = np.array([error != MISSING for error in errors], dtype=bool)[error_codes[files]]
    readable = ~facts.has_error[files]
    rows = files[readable]

    def count(codes: np.ndarray, names: Sequence[str]) -> dict[str, PartCount]:
        has_one = codes >= 0
        masks = (has_one, there & has_one, readable & has_one)
        columns = [np.bincount(codes[mask], minlength=len(names)).tolist() for mask in masks]
        return {name: PartCount(*numbers) for name, *numbers in zip(names, *columns, strict=True)}

    broken: Counter[str] = Counter()
    for code, number in _count(error_codes[files[there & ~readable]]):
        broken[_group(errors[code])] += number
    codec_codes, codecs = facts.texts("codec")
    sizes: Counter[str] = Counter()
    pairs = np.stack([facts.numbers["width"][rows], facts.numbers["height"][rows]], axis=1)
    values, numbers = np.unique(pairs, axis=0, return_counts=True)
    for (width, height), number in zip(values.tolist(), numbers.tolist(), strict=True):
        sizes[f"{width} x {height}" if width > 0 else "size not known"] += number
    return ScanSummary(
        target=target,
        listed=len(files),
        there=int(there.sum()),
        readable=int(readable.sum()),
        num_probed=num_probed,
        broken=_most_first(broken),
        hours=float(np.nansum(facts.numbers["duration_seconds"][rows])) / 3600,
        quantities=_quantities(facts, rows),
        sizes=_most_first(sizes),
        codecs=_most_first(Counter({codecs[c] or "codec not known": n for c, n in _count(codec_codes[rows])})),
        by_split={} if splits is None else count(splits.codes, splits.values),
        by_class=count(labels, classes) if classes else {},
    )


def _count(codes: np.ndarray) -> list[tuple[int, int]]:
    values, numbers = np.unique(codes, return_counts=True)
    return list(zip(values.tolist(), numbers.tolist(), strict=True))


def _quantities(facts: FactColumns, rows: np.ndarray) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in ("num_frames", "fps", "duration_seconds", "key_frame_interval", "size_bytes"):
        values: Any = facts.numbers[name][rows]
        values = values[~np.isnan(values) if values.dtype.kind == "f" else values >= 0]
        if len(values):
            # A value that occurs, not one between two.
            quantiles = np.quantile(values, list(_QUANTILES.values()), method="inverted_cdf")
            found[name] = dict(zip(_QUANTILES, (float(value) for value in quantiles), strict=True))
    return found
