"""The table that a test or a validation ends with, on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from video_gn.shown import console

_ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class accuracy"}


def print_figures(figures: Mapping[str, str]) -> None:
    """Print names and figures as a table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, figure in figures.items():
        table.add_row(name, escape(figure))
    console().print(table)


def test_figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Names and figures of a test's metrics.json."""
    num_videos, num_failed = metrics["num_videos"], metrics["num_failed"]
    num_read = num_videos - num_failed
    failed = f"; {num_failed} could not be read and {'is' if num_failed == 1 else 'are'} not counted"
    clips, crops = (_counted(metrics[f"num_{what}s"], what) for what in ("clip", "crop"))
    return {
        "checkpoint": metrics["checkpoint"] or "none",
        **_accuracies(metrics, num_read),
        "videos": f"{num_read} of {num_videos} ({_percent(metrics['coverage'], num_videos)})"
        + failed * (num_failed > 0),
        "views": f"{clips} x {crops} of each video",
    }


def validation_figures(metrics: Mapping[str, Any], *, checkpoint: str | None, num_videos: int) -> dict[str, str]:
    """Names and figures of what Lightning has logged in a validation, val/loss and so on."""
    values = {name.removeprefix("val/"): float(value) for name, value in metrics.items()}
    return {
        "checkpoint": checkpoint or "none",
        "loss": f"{values['loss']:.3f}",
        **_accuracies(values, num_videos),
        "videos": f"{num_videos}, one clip of each",
    }


def _accuracies(metrics: Mapping[str, Any], num_videos: int) -> dict[str, str]:
    found = {name: metrics[key] for key, name in _ACCURACIES.items() if metrics.get(key) is not None}
    return {name: _percent(value, num_videos) for name, value in found.items()}


def _percent(fraction: float, num_videos: int) -> str:
    """A second digit from 1000 videos on, where it means something."""
    return f"{100 * fraction:.{1 if num_videos < 1000 else 2}f} %"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
