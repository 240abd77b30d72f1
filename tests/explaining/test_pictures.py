import dataclasses

import matplotlib
import numpy as np
import pytest
import torch
from media import read_number, write_numbered_video

from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig
from video_gn.evaluation.predictor import Predictor
from video_gn.explaining import draw_strip, explain, overlay
from video_gn.models import i3d
from video_gn.rendering.text import text_width


@pytest.mark.parametrize("grey", [0, 100, 255])
def test_overlay(grey):
    """Against the formula in float64: half of the frame, and up to 0.65 of colour over it; no level runs over."""
    frame = np.full((30, 300, 3), grey, np.uint8)
    heat = np.linspace(0, 1, 300)[None].repeat(30, 0).astype(np.float32)
    heat[:, 290:] = np.nan
    drawn = overlay(frame, heat).astype(float)
    colours = 255 * matplotlib.colormaps["inferno"](heat[:, :290].astype(float))[..., :3]
    opacity = 0.65 * heat[:, :290, None].astype(float)
    np.testing.assert_allclose(
        drawn[:, :290], 0.5 * grey * (1 - opacity) + opacity * colours, atol=5
    )  # 256 steps, rounded down
    assert drawn[0, 289].mean() > drawn[0, 0].mean() + 40
    assert set(np.unique(drawn[:, 290:] - int(0.25 * grey))) == {0, 40}
    assert ((drawn[:, 290:] > int(0.25 * grey)).all(-1) == (np.indices((30, 300)).sum(0) % 8 == 0)[:, 290:]).all()


def test_the_strip_shows_frames_of_the_clips(tmp_path):
    """Two clips of frames 0, 2, ..., 14 and 26, ..., 40 of 41: those nearest to the middles of fifths."""
    write_numbered_video(tmp_path / "v.mp4", 41, size=(64, 48))
    torch.manual_seed(0)
    net = i3d(50, norm="group", num_groups=2, width=4, num_classes=2, zero_init_last_norm=False)
    predictor = Predictor(
        net,
        classes=["a", "b"],
        clip=ClipConfig(num_frames=8, stride=2),
        crops=TestCrops("full", short_side_px=32),
        num_clips=2,
        spacing="uniform",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )
    explanation = explain(predictor, tmp_path / "v.mp4", "b", num_windows=3)
    hebrew = np.asarray(draw_strip(dataclasses.replace(explanation, label="שלום")))
    strip = np.asarray(draw_strip(explanation))
    figure = slice(24, 92), slice(24, 24 + text_width("0.00", 34))  # the score is at the left of any label
    np.testing.assert_array_equal(strip[figure], hebrew[figure])
    assert strip[figure].min() < 100
    width, height = 225, 169  # of a frame
    tops = strip[92 : 92 + height], strip[92 + height + 6 : 92 + 2 * height + 6]
    lefts = [24 + number * 231 for number in range(5)]
    assert [read_number(tops[0][:, left : left + width]) for left in lefts] == [4, 12, 14, 28, 36]
    for left, number in zip(lefts, (4, 12, 14, 28, 36), strict=True):
        heat = explanation.heat(number / 25, height, width)
        expected = overlay(tops[0][:, left : left + width], heat)
        np.testing.assert_array_equal(tops[1][:, left : left + width], expected)
