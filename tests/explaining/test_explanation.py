"""A whole explanation, of a network whose answer depends on one place and one time; and bad input."""

import logging

import numpy as np
import pytest
import torch
from nets import randomize
from PIL import Image
from torch import nn
from torch.nn import functional as F

from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig
from video_gn.errors import ConfigError, SettingError
from video_gn.evaluation.predictor import Predictor
from video_gn.explaining import explain
from video_gn.explaining.grad_cam import grad_cam
from video_gn.models import I3D, OwnNet, build_network, for_inference, i3d
from video_gn.models.resnet3d import Head, Window

FPS = 30  # of a folder of pictures


class Flash(I3D):
    """Finds bright pixels: a cell is their mean around its middle, where the layout "nonlocal" has it.

    Black and the mean colour give 0. The scores of "dark" and "flash" are softmax of 0 and 1000 times the mean cell.
    """

    layout = "nonlocal"
    num_classes = 2

    def __init__(self, window_px):
        nn.Module.__init__(self)
        self.blocks = nn.ModuleList([Head(1, 2, pool=Window((None, window_px, window_px)), dropout=0.0)])
        self.blocks[0].proj.weight.data.copy_(torch.tensor([[0.0], [1000.0]]))
        self.blocks[0].proj.bias.data.zero_()

    def forward(self, x_NCTHW):
        bright = F.pad((x_NCTHW.mean(1, keepdim=True) - 1).relu(), (13, 17, 13, 17))
        cells = F.avg_pool3d(bright, (7, 31, 31), stride=(8, 32, 32))  # middles 3 + 8 i, 2 + 32 i
        return self.blocks[0](cells).softmax(-1).mean(1)


def flash_predictor(crops, *, num_clips=1, clip=None, window_px=7):
    torch.manual_seed(0)
    net = i3d(50, norm="none", width=4, num_classes=2)
    predictor = Predictor(
        net,
        classes=["dark", "flash"],
        clip=clip or ClipConfig(num_frames=32, stride=1),
        crops=crops,
        num_clips=num_clips,
        spacing="uniform",
        mean=(0.4, 0.4, 0.4),
        std=(0.25, 0.25, 0.25),
    )
    predictor.net = Flash(window_px).eval()
    return predictor


def write_flash(folder, *, num_frames, frames, size=(160, 120), box=(0, 0, 8, 8)):
    """A folder of black frames, some of them with a white box (left, top, right, bottom)."""
    folder.mkdir()
    for number in range(num_frames):
        picture = Image.new("RGB", size)
        if number in frames:
            picture.paste((255, 255, 255), box)
        picture.save(folder / f"img_{number + 1:05d}.png")
    return folder


@pytest.mark.parametrize(("crops", "window_px"), [("center", 7), ("full", 7), ("full", 2)])
def test_a_flash_at_one_place_and_time(tmp_path, crops, window_px):
    """Cell (1, 2, 1) of the crop; with a window of 2 cells, full-frame scores are means over positions."""
    views = TestCrops(crops, short_side_px=120, crop_px=112)
    left, top = (24, 4) if crops == "center" else (0, 0)
    middle = np.array([top + 2 + 2 * 32, left + 2 + 32])  # row, column on the frame, which is not resized
    box = (middle[1] - 4, middle[0] - 4, middle[1] + 5, middle[0] + 5)
    video = write_flash(tmp_path / "v", num_frames=32, frames=range(8, 15), box=box)
    found = explain(flash_predictor(views, window_px=window_px), video, "flash", num_windows=4)

    assert found.maps_KPthw.shape[:3] == (1, 1, 4)
    expected = np.zeros_like(found.maps_KPthw[0, 0])
    expected[1, 2, 1] = 1
    np.testing.assert_array_equal(found.maps_KPthw[0, 0], expected)
    heat = found.heat(11 / FPS, 120, 160)
    assert heat[tuple(middle)] == 1
    rows, columns = np.indices(heat.shape)
    # Linear between the middles of cells, in both directions.
    linear = (1 - abs(rows - middle[0]) / 32).clip(0) * (1 - abs(columns - middle[1]) / 32).clip(0)
    inside = (rows >= top) & (rows < top + 112) & (columns >= left) & (columns < left + 112)
    if crops == "full":
        inside[:] = True
    np.testing.assert_allclose(heat[inside], linear[inside], atol=1e-6)
    assert np.isnan(heat[~inside]).all()
    assert found.heat(7 / FPS, 120, 160)[tuple(middle)] == pytest.approx(0.5)  # in time as well
    assert found.heat(3 / FPS, 120, 160)[tuple(middle)] == 0
    assert np.isnan(found.heat(32 / FPS, 120, 160)).all()  # after the last frame

    # Without the second quarter of the frames it is dark: both scores are 1/2. Without another one nothing changes.
    assert found.score > 0.6
    scores = [part.score_without for part in found.occlusion]
    assert scores == [found.score, 0.5, found.score, found.score]
    dark = explain(flash_predictor(views, window_px=window_px), video, "dark")
    assert not dark.maps_KPthw.any() and dark.score == pytest.approx(1 - found.score)


def test_clips_and_crops_are_put_together(tmp_path):
    """Two clips of 8 frames at 0 and 20, and three crops: NaN between them, means where crops overlap."""
    views = TestCrops("three", short_side_px=64, crop_px=64)
    video = write_flash(tmp_path / "v", num_frames=28, frames=range(20, 28), size=(120, 64), box=(32, 32, 34, 34))
    predictor = flash_predictor(views, num_clips=2, clip=ClipConfig(num_frames=8, stride=1))
    found = explain(predictor, video, num_windows=7)
    assert found.label == "flash"
    assert found.maps_KPthw.shape == (2, 3, 1, 2, 2)
    assert not found.maps_KPthw[0].any() and found.maps_KPthw.max() == 1
    assert np.isnan(found.heat(10 / FPS, 64, 120)).all()
    assert not found.heat(2 / FPS, 64, 120).any()
    heat = found.heat(25 / FPS, 64, 120)
    boxes, heat_PHW = found.places.boxes, np.full((3, 64, 120), np.nan)
    assert boxes == ((0, 0, 64, 64), (0, 28, 64, 92), (0, 56, 64, 120))
    for crop, (top, left, bottom, right) in enumerate(boxes):
        found.places.boxes = boxes[crop : crop + 1]
        heat_PHW[crop] = found.places.on_frame(found.maps_KPthw[1, crop : crop + 1, 0], 64, 120)
        assert not np.isnan(heat_PHW[crop, top:bottom, left:right]).any() and np.isnan(heat_PHW[crop]).sum() == 64 * 56
    np.testing.assert_allclose(heat, np.nanmean(heat_PHW, 0), rtol=1e-6)
    drops = [part.score_without for part in found.occlusion]
    assert drops[2:5] == [None] * 3 and drops[:2] == [found.score] * 2 and max(drops[5:]) < found.score
    written = found.as_json()
    assert list(written) == ["path", "label", "score", "clips", "occlusion"]
    assert [clip["start_seconds"] for clip in written["clips"]] == [0.0, 0.667]
    assert written["clips"][1]["heat_seconds"] == [0.767] and written["clips"][0]["heat"] == [0.0]
    assert written["occlusion"][2] == {"start_seconds": 0.267, "end_seconds": 0.4, "score_without": None, "drop": None}


def test_a_clip_longer_than_the_video(tmp_path, caplog):
    """Of 12 frames, 8 to 11 and 0 to 3 are in a clip of 16 twice (from frame 0: 0 to 11, then 0 to 3)."""
    views = TestCrops("full", short_side_px=64)
    video = write_flash(tmp_path / "v", num_frames=12, frames=range(12), size=(64, 64), box=(0, 0, 64, 64))
    predictor = flash_predictor(views, clip=ClipConfig(num_frames=16, stride=1))
    with caplog.at_level(logging.WARNING):
        found = explain(predictor, video, num_windows=10**9)
    assert len(found.occlusion) == 12  # one for each frame
    assert "v has 12 frames, and a clip takes 16: some are in it again" in caplog.text
    maps = found.maps_KPthw[0, 0]
    for frame, cells in ((3, maps[0]), (7, (maps[0] + maps[1]) / 2), (1, (maps[0] * 1.0 + maps[1]) / 2)):
        assert found.heat(frame / FPS, 64, 64)[2, 2] == pytest.approx(cells[0, 0], abs=1e-6), frame


@pytest.mark.parametrize("network", ["x3d_s", "slow_r50"])
def test_a_network_of_the_hub(tmp_path, network):
    """Its inference copy gives the maps and scores of the network itself."""
    views = TestCrops("center", short_side_px=64, crop_px=64)
    video = write_flash(tmp_path / "v", num_frames=16, frames=range(8), size=(64, 64), box=(0, 0, 40, 20))
    predictor = flash_predictor(views, clip=ClipConfig(num_frames=4, stride=4))
    net = randomize(build_network({"network": network, "width": 4, "num_classes": 2})).eval()
    predictor.net = for_inference(net)
    frames_VTCHW = predictor._read(video, fps=None, backend="auto")[0]
    with torch.no_grad():
        x_NCTHW = ((frames_VTCHW / 255 - 0.4) / 0.25).transpose(1, 2)
        wanted = net.features(x_NCTHW).detach()
        maps = grad_cam(net.blocks[-1], wanted, 1)
    found = explain(predictor, video, "flash")
    assert found.maps_KPthw.shape == (1, 1, 4, 2, 2) and found.places.stride == (1, 32, 32)
    np.testing.assert_allclose(found.maps_KPthw[0, 0], (maps / (maps.max() or 1))[0], rtol=1e-3, atol=1e-4)
    assert found.maps_KPthw.max() == 1 and found.score == pytest.approx(float(net(x_NCTHW)[0, 1].detach()), rel=1e-4)


def test_a_network_of_ones_own(tmp_path):
    predictor = flash_predictor(TestCrops("full", short_side_px=64))
    predictor.net = OwnNet(nn.Identity())
    with pytest.raises(ConfigError, match="explain must have one of i3d, x3d_s, .* got None: torch.nn"):
        explain(predictor, tmp_path / "none")


def test_an_unknown_label(tmp_path):
    predictor = flash_predictor(TestCrops("full", short_side_px=64))
    with pytest.raises(SettingError, match="label must be one of dark, flash, got 'flsh'. Did you mean flash?"):
        explain(predictor, tmp_path / "none", "flsh")
    predictor.classes = [f"class {number}" for number in range(400)]
    with pytest.raises(SettingError, match="one of the network's 400 classes, got 'x'"):
        explain(predictor, tmp_path / "none", "x")
