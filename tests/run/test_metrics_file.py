"""Rows of metrics.csv."""

import math

from video_gn.run.metrics_file import best_row, format_metrics, is_best, read_metrics


def test_metrics_rows_come_back_and_a_torn_line_does_not(tmp_path):
    rows = [{"step": 1, "epoch": 0, "train/loss": 0.1 + 0.2}, {"step": 2, "epoch": 0, "val/top1": 1 / 3}]
    text = format_metrics(rows, ["step", "epoch", "train/loss", "val/top1"], header=True)
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    assert read_metrics(path) == rows
    path.write_text(text[:-3])
    assert read_metrics(path) == rows[:1]
    path.write_text(text.splitlines()[0] + "\n")
    assert read_metrics(path) == []


def test_of_equal_validations_the_later_is_the_best():
    assert is_best(0.5, None) and is_best(0.5, 0.5) and is_best(0.6, 0.5) and not is_best(0.4, 0.5)
    assert is_best(0.0, math.nan) and is_best(math.nan, None) and not is_best(math.nan, 0.0)
    figures = [math.nan, 0.2, None, 0.5, 0.5, math.nan, 0.1]
    rows = [{"step": step} | ({} if x is None else {"val/top1": x}) for step, x in enumerate(figures)]
    assert best_row(rows, "val/top1")["step"] == 4
    assert best_row(rows[:1], "val/top1") is None and best_row(rows, "val/top5") is None
