"""The figures that a test and a validation print."""

import pytest

from video_gn.commands import _terminal
from video_gn.commands._terminal import print_figures, validation_figures

METRICS = {
    "top1": 1 / 6, "top5": None, "mean_class_accuracy": 0.25, "num_videos": 7, "num_failed": 1, "coverage": 6 / 7,
    "num_clips": 10, "num_crops": 3, "checkpoint": "runs/mine/checkpoints/best.ckpt",
}  # fmt: skip
figures_of = _terminal.test_figures


def test_of_a_test():
    assert figures_of(METRICS) == {
        "checkpoint": "runs/mine/checkpoints/best.ckpt",
        "top-1": "16.7 %",
        "mean class accuracy": "25.0 %",
        "videos": "6 of 7 (85.7 %); 1 could not be read and is not counted",
        "views": "10 clips x 3 crops of each video",
    }


@pytest.mark.parametrize(("num_videos", "shown"), [(999, "73.3 %"), (1000, "73.26 %"), (19761, "73.26 %")])
def test_digits(num_videos, shown):
    metrics = {
        **METRICS,
        "top1": 0.73264,
        "num_videos": num_videos,
        "num_failed": 0,
        "num_crops": 1,
        "checkpoint": None,
    }
    figures = figures_of(metrics)
    assert figures["top-1"] == shown
    assert (figures["checkpoint"], figures["views"]) == ("none", "10 clips x 1 crop of each video")


def test_of_a_validation(capsys):
    figures = validation_figures({"val/loss": 2.10467, "val/top1": 0.125}, checkpoint="[a].ckpt", num_videos=8)
    assert figures == {"checkpoint": "[a].ckpt", "loss": "2.105", "top-1": "12.5 %", "videos": "8, one clip of each"}
    print_figures(figures)
    assert "│ checkpoint │ [a].ckpt            │" in capsys.readouterr().out
