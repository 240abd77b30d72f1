"""What the page shows of a training: curves of loss, accuracy and learning rate by optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from video_gn.report.analysis import smooth
from video_gn.report.plots import Axis, Curve, line_chart, line_of
from video_gn.run.metrics_file import best_row

# A learning rate that spans more than this is drawn on a logarithmic axis.
_LOG_FROM = 30.0
_STEPS = Axis("optimizer step", whole=True)

Rows = Sequence[dict[str, Any]]


class Column(NamedTuple):
    """The rows of metrics.csv that have a value in a column."""

    steps: np.ndarray  # int64 (n,)
    values: np.ndarray  # float64 (n,)
    epochs: list[int]  # n of them, from 1; logged ones count from 0

    def hints(self) -> list[str]:
        """Step and epoch of each value, for the tip of its dot."""
        return [f"step {step:,}, epoch {epoch}" for step, epoch in zip(self.steps.tolist(), self.epochs, strict=True)]


def column(rows: Rows, name: str) -> Column:
    """A column of metrics.csv."""
    found = [row for row in rows if name in row]
    steps = np.array([row["step"] for row in found], dtype=np.int64)
    return Column(steps, np.array([row[name] for row in found], dtype=np.float64), [row["epoch"] + 1 for row in found])


def smoothing_window(num_rows: int) -> float:
    """Rows that the smoothed loss averages over: a fiftieth of the run, at least 5."""
    return max(5.0, num_rows / 50)


def section(rows: Rows, monitor: str) -> dict[str, Any]:
    """Charts and the figures of the sentences around them; `monitor` is the figure that chose best.ckpt."""
    loss, judged = column(rows, "train/loss"), column(rows, monitor)
    bad = loss.steps[~np.isfinite(loss.values)]
    row = best_row(rows, monitor)
    best = None if row is None else {"step": row["step"], "epoch": row["epoch"] + 1, "value": row[monitor]}
    return {
        "step": rows[-1]["step"],
        "epoch": rows[-1]["epoch"] + 1,
        "loss": f"{loss.values[-1]:.4g}" if len(loss.values) else None,
        "best": best,
        "judged_by": monitor.removeprefix("val/").replace("top", "top-"),
        "last": float(judged.values[-1]) if best else None,
        "charts": [chart for chart in (_loss(rows), _accuracy(rows), _learning_rate(rows)) if chart],
        "num_not_finite": len(bad),
        "first_not_finite": int(bad[0]) if len(bad) else None,
        "window": round(smoothing_window(len(loss.steps))) if len(loss.steps) else None,
        "validated": any("val/top1" in row for row in rows),
    }


def _loss(rows: Rows) -> Markup | None:
    curves = []
    train, val = column(rows, "train/loss"), column(rows, "val/loss")
    if len(train.steps):
        smoothed = smooth(train.values, smoothing_window(len(train.steps)))
        curves.append(Curve("train, each logged step", train.steps, train.values, 1, "faint", shows_last=False))
        curves.append(Curve("train, smoothed", train.steps, smoothed, 1))
    if len(val.steps):
        curves.append(Curve("validation", val.steps, val.values, 2, "dots", dashed=True, hints=val.hints()))
    y = Axis("cross-entropy, nats")
    return line_chart("Loss", curves, x=_STEPS, y=y, size="full") if curves else None


def _accuracy(rows: Rows) -> Markup | None:
    rows = [row for row in rows if "val/top1" in row or "val/top5" in row]
    if not rows:
        return None
    curves = []
    for name, label, color in (("val/top1", "top-1", 3), ("val/top5", "top-5", 4)):
        found = column([{name: np.nan, **row} for row in rows], name)
        if np.isfinite(found.values).any():
            dashed, hints = color == 4, found.hints()
            curves.append(Curve(label, found.steps, found.values, color, "dots", dashed=dashed, hints=hints))
    y = Axis("accuracy", "percent")
    return line_chart("Validation accuracy", curves, x=_STEPS, y=y)


def _learning_rate(rows: Rows) -> Markup | None:
    steps, values, _ = column(rows, "lr")
    if not len(steps):
        return None
    positive = values[np.isfinite(values) & (values > 0)]
    spans = len(positive) == len(values) and positive.max() > _LOG_FROM * positive.min()
    y = Axis("learning rate", "log") if spans else Axis("learning rate")
    return line_chart("Learning rate", [Curve("lr", steps, values, 1)], x=_STEPS, y=y)


def together(names: Sequence[str], runs: Sequence[Rows]) -> list[Markup]:
    """Charts of several runs' losses and validation accuracies, a line for each run.

    They are over the clips seen, which mean the same at any batch size, if all runs have logged them, else over steps.
    """
    figures = (
        ("Training loss", "train/loss", Axis("cross-entropy, nats")),
        ("Validation loss", "val/loss", Axis("cross-entropy, nats")),
        ("Validation top-1", "val/top1", Axis("accuracy", "percent")),
    )
    sizes = [_clips_of_step(rows) for rows in runs if rows]
    x = _STEPS if None in sizes else Axis("clips seen", whole=True)
    charts = []
    for title, key, y in figures:
        curves = []
        for place, (name, rows) in enumerate(zip(names, runs, strict=True)):
            found = column(rows, key)
            if not len(found.steps):
                continue
            places = found.steps if x is _STEPS else found.steps * (_clips_of_step(rows) or 0)
            if key == "train/loss":
                smoothed = smooth(found.values, smoothing_window(len(places)))
                curves.append(Curve(name, places, smoothed, **line_of(place)))
            else:
                curves.append(Curve(name, places, found.values, style="dots", hints=found.hints(), **line_of(place)))
        if curves:
            charts.append(line_chart(title, curves, x=x, y=y))
    return charts


def _clips_of_step(rows: Rows) -> float | None:
    """Clips of an optimizer step, by a row of the first epoch; None if it does not say."""
    first = (row for row in rows if row["epoch"] == 0 and row["step"] > 0 and row.get("clips", 0) > 0)
    return next((row["clips"] / row["step"] for row in first), None)
