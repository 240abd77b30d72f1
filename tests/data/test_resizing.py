"""Sizes and pixels of resized frames, against the definition and against whole frames."""

import math

import numpy as np
import pytest
import torch
from frames import crop_params, noise, resize_by_definition
from torch.nn import functional
from torchvision.transforms.v2 import functional as F

from video_gn.data import crops as transforms
from video_gn.data.crops import TrainTransform, resized_size

# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (256, 340, 256, (256, 340)),
        (240, 320, 256, (256, 341)),  # 341.33
        (320, 240, 256, (341, 256)),
        (360, 480, 320, (320, 426)),  # 426.67
        (100, 100, 224, (224, 224)),
        (64, 2000, 256, (256, 8000)),
        (2000, 64, 256, (8000, 256)),
        (1080, 1920, 256, (256, 455)),  # 455.11
        (224, 230, 224, (224, 230)),  # its own size; floor((230 / 224) * 224) in float64 is 229
        (7, 61, 224, (224, 1952)),  # exactly 1952; in float64 1951
        (1, 1, 3, (3, 3)),
    ],
)
def test_resized_size_by_hand(height, width, short_side, expected):
    assert resized_size(height, width, short_side) == expected


def test_resized_size_against_the_sources_float64():
    # floor((long / short) * size) may fall one short of a whole number; nothing else differs
    for short in range(100, 400, 7):
        for long in range(short, 800, 11):
            for size in (256, 288, 320):
                ours = resized_size(short, long, size)[1]
                theirs = math.floor((long / short) * size)
                assert ours == theirs or (ours == theirs + 1 and long * size % short == 0)
                assert resized_size(long, short, size) == (ours, size)


# ---- resizing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "short_side"),
    [((40, 60), 32), ((40, 60), 56), ((60, 40), 32), ((33, 97), 32), ((90, 70), 32), ((8, 100), 32)],
)
def test_resize_against_the_definition(size, short_side):
    frames = noise(3, *size)
    resized = resized_size(*size, short_side)
    got = transforms.TestCrops("full", short_side_px=short_side).apply(frames)[0]
    expected = resize_by_definition(frames, *resized)
    assert got.dtype == torch.uint8
    assert tuple(got.shape) == (3, 3, *resized)
    # torch rounds to uint8 after each of its two passes, half a level each since weights add up to 1;
    # its integer weights add a few hundredths.
    assert np.abs(got.permute(0, 2, 3, 1).numpy() - expected).max() < 1.05
    reference = functional.interpolate(
        frames.permute(0, 3, 1, 2).double(), resized, mode="bilinear", antialias=True, align_corners=False
    )
    assert np.abs(reference.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-9  # the oracles agree
    assert (got.double() - reference.round()).abs().max() <= 1


# Sizes that videos have (Kinetics, UCF101, Weizmann, full HD), upright ones, and an odd one.
USUAL = [(256, 340), (240, 320), (180, 320), (360, 640), (144, 180), (1080, 1920), (340, 256), (640, 360), (333, 501)]


@pytest.mark.parametrize("size", USUAL)
def test_a_crop_is_that_of_the_whole_frame_though_less_is_computed(size):
    frames, rng = noise(1, *size), np.random.default_rng(sum(size))
    transform = TrainTransform((256, 320), 224)
    for short_side in (256, 257, 288, 320, *rng.integers(256, 321, 8).tolist()):
        height, width = resized_size(*size, short_side)
        # torchvision's, of all of it.
        whole = F.resize(frames.permute(0, 3, 1, 2), [height, width], antialias=True)
        for top, left in ((0, 0), (height - 224, width - 224), (rng.integers(height - 223), rng.integers(width - 223))):
            params = crop_params((height, width), int(top), int(left), crop_px=224)
            assert torch.equal(transform.apply(frames, params), whole[:, :, top : top + 224, left : left + 224])


@pytest.mark.parametrize("size", [(40, 60), (33, 20)])
def test_any_part_of_a_resize_is_a_part_of_the_whole(size):
    """Also where the part has as many rows as the frame, which torch would take for nothing to do."""
    frames = noise(1, *size)
    for height, width in ((33, 50), (41, 61), (39, 59), (40, 70), (80, 30), (size[0], 25)):
        whole = transforms.resize(frames, height, width)
        for bottom in range(1, height + 1):
            for right in (bottom, 2 * bottom):
                part = transforms.resize(frames, height, width, bottom=bottom, right=right)
                assert part.shape == whole[:, :bottom, :right].shape
                # A level: see there.
                assert (part.int() - whole[:, :bottom, :right].int()).abs().max() <= 1


def test_a_frame_of_the_right_size_is_not_touched():
    frames = noise(4, 32, 50)
    got = transforms.TestCrops("full", short_side_px=32).apply(frames)
    assert torch.equal(got[0].permute(0, 2, 3, 1), frames)
    assert got.data_ptr() == frames.data_ptr()


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (32, 48), (20, 30)])
def test_each_frame_alone_is_the_clips_frame(size):
    frames = noise(5, *size)
    transform = TrainTransform((32, 40), 24)
    for seed in range(4):
        params = transform.draw(np.random.default_rng(seed), *size)
        whole = transform.apply(frames, params)
        assert torch.equal(torch.cat([transform.apply(frames[t : t + 1], params) for t in range(5)]), whole)
        assert torch.equal(torch.cat([transform.apply(part, params) for part in frames.split(2)]), whole)
    for mode in ("center", "three", "full"):
        crops = transforms.TestCrops(mode, short_side_px=32, crop_px=24)
        whole = crops.apply(frames)
        assert torch.equal(torch.cat([crops.apply(frames[t : t + 1]) for t in range(5)], 1), whole)


def test_any_memory_order_of_the_input_gives_the_same():
    frames = noise(4, 40, 60)
    other = frames.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    transform = TrainTransform((32, 40), 24)
    params = transform.draw(np.random.default_rng(1), 40, 60)
    assert torch.equal(transform.apply(frames, params), transform.apply(other, params))
    crops = transforms.TestCrops("three", short_side_px=40, crop_px=24)  # no resize: strides go through
    assert torch.equal(crops.apply(frames), crops.apply(other))
