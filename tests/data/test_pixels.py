"""Changes of a frame's pixels against torchvision's functions of the same names."""

import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from video_gn.data import _pixels


def clip(num_frames=3, height=24, width=30, *, seed=0, smooth=False):
    """uint8 (T, C, H, W) in the memory order T, H, W, C."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    if smooth:
        frames = frames // 8 + np.linspace(40, 180, width, dtype=np.uint8)[None, None, :, None]
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def levels_apart(a, b):
    return int((a.int() - b.int()).abs().max())


def is_thwc(frames_TCHW):
    return frames_TCHW.permute(0, 2, 3, 1).is_contiguous()


PIXELS = [
    ("brightness", lambda f: lambda x: F.adjust_brightness(x, f), 0),
    ("contrast", lambda f: lambda x: F.adjust_contrast(x, f), 1),  # the mean's last bit may differ
    ("saturation", lambda f: lambda x: F.adjust_saturation(x, f), 0),
    ("sharpness", lambda f: lambda x: F.adjust_sharpness(x, f), 0),
    ("hue", lambda f: lambda x: F.adjust_hue(x, (f % 1) - 0.5), 1),  # HSV in another, equal form
]


@pytest.mark.parametrize(("name", "reference", "tolerance"), PIXELS, ids=[p[0] for p in PIXELS])
@pytest.mark.parametrize("factor", [0.0, 0.3, 0.9999, 1.0, 1.7, 2.5])
@pytest.mark.parametrize("smooth", [False, True])
def test_pixels_against_torchvision(name, reference, tolerance, factor, smooth):
    frames = clip(3, 20, 33, smooth=smooth)
    ours = (factor % 1) - 0.5 if name == "hue" else factor
    got = _pixels.change_frames(frames, [lambda x: getattr(_pixels, name)(x, ours)])
    assert got.dtype == torch.uint8 and is_thwc(got)
    expected = reference(factor)(frames)
    assert levels_apart(got, expected) <= tolerance
    assert (got != expected).float().mean() < 2e-3


@pytest.mark.parametrize("frames", [clip(), clip(smooth=True), torch.full((2, 3, 9, 9), 77, dtype=torch.uint8)])
def test_autocontrast_and_equalize_against_torchvision(frames):
    for ours, theirs in (
        (_pixels.autocontrast, F.autocontrast),
        (_pixels.equalize, F.equalize),
    ):
        assert torch.equal(_pixels.change_frames(frames, [ours]), theirs(frames))


def test_equalize_where_most_pixels_have_one_level():
    frames = clip(1, 20, 20) // 128 * 3
    frames[:, :, :19] = 255
    assert torch.equal(_pixels.change_frames(frames, [_pixels.equalize]), F.equalize(frames))


def test_hue_against_the_standard_library():
    frames = clip(1, 12, 12, seed=4)
    got = _pixels.change_frames(frames, [lambda x: _pixels.hue(x, 0.3)])
    for pixel, new in zip(frames.flatten(2)[0].T.tolist(), got.flatten(2)[0].T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(p / 255 for p in pixel))
        expected = [255 * p for p in colorsys.hsv_to_rgb((h + 0.3) % 1, s, v)]
        assert np.abs(np.array(expected) - new).max() < 1.01  # rounding to a level, by equal parts


def test_hue_of_greys_stays_and_a_whole_turn_changes_nothing():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(_pixels.change_frames(grey, [lambda x: _pixels.hue(x, 0.37)]), grey)
    frames = clip()
    assert levels_apart(_pixels.change_frames(frames, [lambda x: _pixels.hue(x, 1.0)]), frames) <= 1


def test_tiny_frames():
    for height, width in ((1, 1), (2, 5), (1, 40)):
        frames = clip(2, height, width)
        assert torch.equal(_pixels.change_frames(frames, [lambda x: _pixels.sharpness(x, 1.9)]), frames)
        for change in (_pixels.autocontrast, _pixels.equalize):
            assert _pixels.change_frames(frames, [change]).shape == frames.shape
