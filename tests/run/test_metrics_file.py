"""Rows of metrics.csv."""

from video_gn.run.metrics_file import format_metrics, read_metrics


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
