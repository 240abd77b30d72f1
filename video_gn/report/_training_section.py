"""The training section: curves of loss, accuracy and learning rate by optimizer step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from video_gn.report._html import Markup, count, esc, join, paragraph, percent
from video_gn.report.analysis import smooth
from video_gn.report.plots import Axis, Curve, line_chart
from video_gn.report.reading import Run

# A learning rate that spans more than this is drawn on a logarithmic axis.
_LOG_FROM = 30.0


def section_of_training(run: Run) -> Markup:
    """Curves and a sentence; what to do where there are none."""
    if not run.rows:
        if run.notes["metrics.csv"].problem == "missing":
            hint = "No metrics.csv lies in this directory: it holds no training, or one that has not logged yet."
            return paragraph(hint, "note")
        return paragraph("metrics.csv holds no rows yet.", "note")
    charts = [_loss(run.rows), _accuracy(run.rows), _learning_rate(run.rows)]
    return join([_summary(run.rows), '<div class="charts">', *charts, "</div>", _footnote(run.rows)])


def column(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Steps, values and epochs of the rows that have a value in a column."""
    found = [row for row in rows if name in row]
    steps = np.array([row["step"] for row in found], dtype=np.int64)
    return steps, np.array([row[name] for row in found], dtype=np.float64), [row["epoch"] for row in found]


def _hints(steps: np.ndarray, epochs: list[int]) -> list[str]:
    # Logged epochs count from 0.
    return [f"step {step:,}, epoch {epoch + 1}" for step, epoch in zip(steps.tolist(), epochs, strict=True)]


def smoothing_window(num_rows: int) -> float:
    """Rows that the smoothed loss averages over: a fiftieth of the run, at least 5."""
    return max(5.0, num_rows / 50)


def _loss(rows: list[dict[str, Any]]) -> Markup:
    steps, values, _ = column(rows, "train/loss")
    curves = []
    if len(steps):
        curves.append(Curve("train, each logged step", steps, values, 1, "faint", tells_last=False))
        curves.append(Curve("train, smoothed", steps, smooth(values, smoothing_window(len(steps))), 1))
    val_steps, val_values, epochs = column(rows, "val/loss")
    if len(val_steps):
        curves.append(Curve("validation", val_steps, val_values, 2, "dots", dashed=True))
    if not curves:
        return Markup("")
    return line_chart(
        "Loss", curves, x=_step_axis(), y=Axis("cross-entropy, nats"), hint=_hints(val_steps, epochs), size="full"
    )


def _accuracy(rows: list[dict[str, Any]]) -> Markup:
    rows = [row for row in rows if "val/top1" in row or "val/top5" in row]
    if not rows:
        return Markup("")
    steps = np.array([row["step"] for row in rows], dtype=np.int64)
    curves = []
    for name, label, color in (("val/top1", "top-1", 3), ("val/top5", "top-5", 4)):
        values = np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)
        if np.isfinite(values).any():
            curves.append(Curve(label, steps, values, color, "dots", dashed=color == 4))
    hints = _hints(steps, [row["epoch"] for row in rows])
    return line_chart("Validation accuracy", curves, x=_step_axis(), y=Axis("accuracy", "percent"), hint=hints)


def _learning_rate(rows: list[dict[str, Any]]) -> Markup:
    steps, values, _ = column(rows, "lr")
    if not len(steps):
        return Markup("")
    positive = values[np.isfinite(values) & (values > 0)]
    spans = len(positive) == len(values) and positive.max() > _LOG_FROM * positive.min()
    y = Axis("learning rate", "log") if spans else Axis("learning rate")
    return line_chart("Learning rate", [Curve("lr", steps, values, 1)], x=_step_axis(), y=y)


def _step_axis() -> Axis:
    return Axis("optimizer step", whole=True)


def _summary(rows: list[dict[str, Any]]) -> Markup:
    last = rows[-1]
    text = f"{count(last['step'], 'optimizer step')}, {count(last['epoch'] + 1, 'epoch')} begun"
    steps, losses, _ = column(rows, "train/loss")
    if len(steps):
        text += f"; training loss {losses[-1]:.4g} at the last logged step"
    steps, accuracies, epochs = column(rows, "val/top1")
    if np.isfinite(accuracies).any():
        best = int(np.nanargmax(accuracies))
        text += f"; best validation top-1 {percent(float(accuracies[best]))} at step {steps[best]:,}"
        text += f" (epoch {epochs[best] + 1}), last {percent(float(accuracies[-1]))}"
    return paragraph(Markup(esc(text + ".").replace("top-1", '<span class="nowrap">top-1</span>')))


def _footnote(rows: list[dict[str, Any]]) -> Markup:
    parts = []
    steps, values, _ = column(rows, "train/loss")
    if len(steps):
        window = smoothing_window(len(steps))
        parts.append(f"Smoothed: exponential moving average over about {window:.0f} logged steps. ")
    if len(column(rows, "val/top1")[0]):
        parts.append("Validation sees one clip a video, the test all views. Point at a dot for its values.")
    bad = steps[~np.isfinite(values)]
    warning = Markup("")
    if len(bad):
        text = f"The training loss was not finite in {count(len(bad), 'logged step')}, first at step {bad[0]:,}."
        warning = paragraph(text, "warning")
    return join([warning, paragraph("".join(parts), "note") if parts else ""])
