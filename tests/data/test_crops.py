"""Crops and flips against slices, sizes by hand, and resizing against its definition in float64."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.transforms.v2 import functional as F

from video_gn.data import crops as transforms
from video_gn.data.crops import CropParams, TrainTransform, resized_size


def noise(num_frames, height, width, *, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8))


def places(num_frames, height, width):
    """Pixels that say where they stand: row, column, 10 * frame + channel."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.arange(height)[None, :, None]
    frames[..., 1] = np.arange(width)[None, None, :]
    frames[..., 2] = 10 * np.arange(num_frames)[:, None, None]
    return torch.from_numpy(frames)


def weights(length, new_length):
    """The triangle filter, as wide as a pixel of the smaller picture, by definition: (new, old)."""
    scale = length / new_length
    width = max(scale, 1.0)
    out = np.zeros((new_length, length))
    for i in range(new_length):
        center = (i + 0.5) * scale
        for j in range(length):
            out[i, j] = max(0.0, 1 - abs(j + 0.5 - center) / width)
        out[i] /= out[i].sum()
    return out


def resize_by_definition(frames_THWC, height, width):
    x = frames_THWC.numpy().astype(np.float64)
    x = np.einsum("ih,thwc->tiwc", weights(x.shape[1], height), x)
    return np.einsum("jw,thwc->thjc", weights(x.shape[2], width), x)


def crop_params(frames, resized, top=0, left=0, *, crop_size, flip=False):
    return CropParams(*frames.shape[1:3], *resized, top, left, crop_size, flip)


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
    got = transforms.TestCrops("full", short_side=short_side).apply(frames)[0]
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
            params = crop_params(frames, (height, width), int(top), int(left), crop_size=224)
            assert torch.equal(transform.apply(frames, params), whole[:, :, top : top + 224, left : left + 224])


@pytest.mark.parametrize("size", [(40, 60), (33, 20)])
def test_any_part_of_a_resize_is_a_part_of_the_whole(size):
    """Also where the part has as many rows as the frame, which torch would take for nothing to do."""
    frames = noise(1, *size)
    for height, width in ((33, 50), (41, 61), (39, 59), (40, 70), (80, 30), (size[0], 25)):
        whole = transforms._resize(frames, height, width)
        for bottom in range(1, height + 1):
            for right in (bottom, 2 * bottom):
                part = transforms._resize(frames, height, width, bottom=bottom, right=right)
                assert part.shape == whole[:, :bottom, :right].shape
                # A level: see there.
                assert (part.int() - whole[:, :bottom, :right].int()).abs().max() <= 1


def test_a_frame_of_the_right_size_is_not_touched():
    frames = noise(4, 32, 50)
    got = transforms.TestCrops("full", short_side=32).apply(frames)
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
        crops = transforms.TestCrops(mode, short_side=32, crop_size=24)
        whole = crops.apply(frames)
        assert torch.equal(torch.cat([crops.apply(frames[t : t + 1]) for t in range(5)], 1), whole)


def test_any_memory_order_of_the_input_gives_the_same():
    frames = noise(4, 40, 60)
    other = frames.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    transform = TrainTransform((32, 40), 24)
    params = transform.draw(np.random.default_rng(1), 40, 60)
    assert torch.equal(transform.apply(frames, params), transform.apply(other, params))
    crops = transforms.TestCrops("three", short_side=40, crop_size=24)  # no resize: strides go through
    assert torch.equal(crops.apply(frames), crops.apply(other))


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("corner", [(0, 0), (3, 17), (16, 36)])
def test_crop_and_flip_are_slices(corner, flip):
    frames = places(2, 40, 60)
    top, left = corner
    got = TrainTransform((40, 40), 24).apply(frames, crop_params(frames, (40, 60), top, left, crop_size=24, flip=flip))
    expected = frames.numpy()[:, top : top + 24, left : left + 24]
    if flip:
        expected = expected[:, :, ::-1]
    assert np.array_equal(got.numpy(), expected.transpose(0, 3, 1, 2))
    assert got[1, :, 0, 0].tolist() == [top, left + 23 if flip else left, 10]


def test_resize_comes_before_the_crop():
    frames = noise(2, 40, 60)
    full = transforms.TestCrops("full", short_side=32).apply(frames)[0]
    for flip in (False, True):
        got = TrainTransform((32, 32), 24).apply(frames, crop_params(frames, (32, 48), 5, 9, crop_size=24, flip=flip))
        expected = full[:, :, 5:29, 9:33]
        assert torch.equal(got, expected.flip(3) if flip else expected)


@pytest.mark.parametrize("size", [(40, 60), (32, 32), (64, 200), (200, 64)])
def test_memory_order_is_frames_rows_columns_channels(size):
    frames = noise(3, *size)
    transform = TrainTransform((32, 32), 24)
    for flip in (False, True):
        params = crop_params(frames, resized_size(*size, 32), crop_size=24, flip=flip)
        t, c, h, w = transform.apply(frames, params).stride()
        assert c == 1 and w == 3 and w < h < t
    for mode in ("center", "three", "full"):
        _, t, c, h, w = transforms.TestCrops(mode, short_side=32, crop_size=24).apply(frames).stride()
        assert c == 1 and w == 3 and w < h < t


def test_draws_are_uniform_over_closed_ranges():
    transform = TrainTransform((32, 35), 30, 0.25)
    rng = np.random.default_rng(0)
    drawn = [transform.draw(rng, 40, 44) for _ in range(8000)]
    # heights 32 ... 35 with widths 35, 36, 37, 38 (35.2, 36.3, 37.4, 38.5)
    sizes = {(p.resized_height, p.resized_width) for p in drawn}
    assert sizes == {(32, 35), (33, 36), (34, 37), (35, 38)}
    for size in sizes:
        some = [p for p in drawn if (p.resized_height, p.resized_width) == size]
        # 2000 expected with a deviation of 39, four of them; the seed is fixed
        assert abs(len(some) - 2000) < 4 * 39
        for counts in (np.bincount([p.top for p in some]), np.bincount([p.left for p in some])):
            assert len(counts) in (size[0] - 30 + 1, size[1] - 30 + 1)
            expected = len(some) / len(counts)
            assert np.abs(counts - expected).max() < 4 * math.sqrt(expected)
        assert max(p.top for p in some) == size[0] - 30
        assert max(p.left for p in some) == size[1] - 30
    # 2000 of 8000 with a deviation of 39
    assert abs(sum(p.flip for p in drawn) - 2000) < 4 * 39
    # no tie between the draws: the four numbers are independent
    table = np.array([[p.resized_height, p.top / (p.resized_height - 30), p.left, p.flip] for p in drawn])
    correlation = np.corrcoef(table[:, [1, 3]].T)[0, 1]
    assert abs(correlation) < 4 / math.sqrt(8000)


def test_flip_never_and_always():
    for flip, expected in ((0.0, {False}), (0, {False}), (1.0, {True}), (1, {True})):
        transform = TrainTransform(flip=flip)
        rng = np.random.default_rng(0)
        assert {transform.draw(rng, 256, 340).flip for _ in range(200)} == expected


def test_a_draw_is_a_function_of_the_generator_and_takes_four_numbers_whatever_the_size():
    transform = TrainTransform()
    for seed in range(20):
        rng, twin = np.random.default_rng(seed), np.random.default_rng(seed)
        first = transform.draw(rng, 256, 340)
        assert first == transform.draw(np.random.default_rng(seed), 256, 340)
        other = transform.draw(np.random.default_rng(seed), 1080, 608)
        assert (other.flip, other.resized_width) == (first.flip, first.resized_height)  # the same short side
        twin.random(4)
        assert rng.random() == twin.random()


def test_draws_by_hand():
    class Fixed(np.random.Generator):
        def __init__(self, *values):
            super().__init__(np.random.PCG64(0))
            self.values = values

        def random(self, size):
            assert size == len(self.values)
            return np.array(self.values)

    transform = TrainTransform((256, 320), 224, 0.5)
    last = math.nextafter(1, 0)
    assert transform.draw(Fixed(0, 0, 0, 0), 256, 340) == CropParams(256, 340, 256, 340, 0, 0, 224, True)
    assert transform.draw(Fixed(last, last, last, 0.5), 256, 340) == CropParams(256, 340, 320, 425, 96, 201, 224, False)
    assert transform.draw(Fixed(0.5, 0.5, 0.5, 0.49), 340, 256) == CropParams(340, 256, 382, 288, 79, 32, 224, True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32))
def test_every_draw_fits(height, width, seed):
    transform = TrainTransform((16, 24), 16)
    params = transform.draw(np.random.default_rng(seed), height, width)
    assert 16 <= min(params.resized_height, params.resized_width) <= 24
    got = transform.apply(noise(1, height, width), params)
    assert got.shape == (1, 3, 16, 16)


def test_small_pictures_are_enlarged_and_long_ones_pass():
    transform = TrainTransform()
    for size in ((10, 12), (64, 2000), (2000, 64), (1, 1)):
        frames = noise(1, *size)
        params = transform.draw(np.random.default_rng(0), *size)
        assert transform.apply(frames, params).shape == (1, 3, 224, 224)
        assert transforms.TestCrops("three").apply(frames).shape == (3, 1, 3, 224, 224)


# ---- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "size", "short_side", "crop_size", "corners"),
    [
        ("center", (40, 60), 40, 40, [(0, 10)]),
        ("center", (40, 60), 40, 24, [(8, 18)]),
        ("center", (40, 61), 40, 24, [(8, 18)]),  # 37 // 2
        ("center", (41, 60), 41, 24, [(8, 18)]),  # 17 // 2
        ("center", (60, 40), 40, 24, [(18, 8)]),
        ("three", (40, 60), 40, 40, [(0, 0), (0, 10), (0, 20)]),
        ("three", (60, 40), 40, 40, [(0, 0), (10, 0), (20, 0)]),
        ("three", (40, 61), 40, 40, [(0, 0), (0, 10), (0, 20)]),  # d = 21: the last ends a pixel early
        ("three", (40, 41), 40, 40, [(0, 0)] * 3),
        ("three", (40, 42), 40, 40, [(0, 0), (0, 1), (0, 2)]),
        ("three", (40, 40), 40, 40, [(0, 0)] * 3),
        ("three", (40, 40), 40, 30, [(5, 0), (5, 5), (5, 10)]),  # square: along the width
        ("three", (40, 60), 40, 24, [(8, 0), (8, 18), (8, 36)]),
        ("three", (60, 40), 40, 24, [(0, 8), (18, 8), (36, 8)]),
        ("three", (40, 200), 40, 40, [(0, 0), (0, 80), (0, 160)]),  # they need not overlap
    ],
)
def test_places_of_the_crops_by_hand(mode, size, short_side, crop_size, corners):
    frames = places(3, *size)
    crops = transforms.TestCrops(mode, short_side=short_side, crop_size=crop_size)
    got = crops.apply(frames)
    assert got.shape == (crops.num_crops, 3, 3, crop_size, crop_size)
    assert [tuple(c) for c in got[:, 0, :2, 0, 0].tolist()] == corners
    for crop, (top, left) in zip(got, corners, strict=True):
        expected = frames.numpy()[:, top : top + crop_size, left : left + crop_size]
        assert np.array_equal(crop.numpy(), expected.transpose(0, 3, 1, 2))


def test_kinetics_sizes_by_hand():
    # 340 x 256, as Kinetics is often stored: 84 columns to spare
    frames = places(1, 256, 340)
    got = transforms.TestCrops("three", short_side=256, crop_size=256).apply(frames)
    expected = [frames[:, :, left : left + 256].permute(0, 3, 1, 2) for left in (0, 42, 84)]
    assert torch.equal(got, torch.stack(expected))
    center = transforms.TestCrops().apply(frames)
    assert torch.equal(center[0], frames[:, 16:240, 58:282].permute(0, 3, 1, 2))


def test_num_crops():
    assert [transforms.TestCrops(mode).num_crops for mode in ("center", "three", "full")] == [1, 3, 1]


@pytest.mark.parametrize(("size", "resized"), [((240, 320), (256, 341)), ((32, 500), (256, 4000))])
def test_full_is_the_whole_frame(size, resized):
    # a crop size that would not fit is not used
    got = transforms.TestCrops("full", short_side=256, crop_size=1000).apply(noise(2, *size))
    assert got.shape == (1, 2, 3, *resized)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 24))
def test_crops_are_slices_of_the_resized_frame(height, width, crop_size):
    frames = noise(2, height, width)
    resized = transforms.TestCrops("full", short_side=24).apply(frames)[0]
    h, w = resized.shape[2:]
    three = transforms.TestCrops("three", short_side=24, crop_size=crop_size).apply(frames)
    center = transforms.TestCrops("center", short_side=24, crop_size=crop_size).apply(frames)
    for place, crop in enumerate(three):
        top, left = (h - crop_size) // 2, (w - crop_size) // 2
        top, left = (place * top, left) if h > w else (top, place * left)
        assert torch.equal(crop, resized[:, :, top : top + crop_size, left : left + crop_size])
    assert torch.equal(center[0], three[1])


# ---- callers' mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_size": 257}, "crop_size must be at most the short side of 256, got 257"),
        ({"crop_size": 0}, "crop_size must be at least 1, got 0"),
        ({"short_side": (320, 256)}, r"short_side must be a range \(lowest, highest\), got \(320, 256\)"),
        ({"short_side": (256,)}, "short_side must be two lengths, lowest and highest, got"),
        ({"short_side": (0, 5)}, "short_side must be at least 1, got 0"),
        ({"flip": 1.5}, r"flip must be in \[0, 1\], got 1.5"),
        ({"flip": math.nan}, r"flip must be in \[0, 1\], got nan"),
    ],
)
def test_bad_training_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "ten"}, r"mode must be one of \['center', 'full', 'three'\], got 'ten'"),
        ({"crop_size": 257}, "crop_size must be at most the short side of 256, got 257"),
        ({"mode": "three", "short_side": 200}, "crop_size must be at most the short side of 200, got 224"),
        ({"mode": "full", "short_side": 0}, "short_side must be at least 1, got 0"),
        ({"crop_size": -1}, "crop_size must be at least 1, got -1"),
    ],
)
def test_bad_test_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        transforms.TestCrops(**arguments)


def test_lengths_are_integers():
    with pytest.raises(TypeError, match=r"crop_size must be an integer, got 224.0"):
        TrainTransform(crop_size=224.0)
    with pytest.raises(TypeError, match=r"short_side must be an integer, got 256.0"):
        transforms.TestCrops(short_side=256.0)
    with pytest.raises(TypeError, match="crop_size must be an integer, got None"):
        transforms.TestCrops(crop_size=None)
    with pytest.raises(TypeError, match=r"height must be an integer, got 256.0"):
        TrainTransform().draw(np.random.default_rng(0), 256.0, 340)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        TrainTransform().draw(np.random.default_rng(0), 256, 0)


def test_the_generator_is_numpys():
    with pytest.raises(TypeError, match=r"rng must be a numpy Generator, got <torch.*Use numpy.random.default_rng"):
        TrainTransform().draw(torch.Generator(), 256, 340)


@pytest.mark.parametrize("apply", ["train", "test"])
def test_bad_frames(apply):
    transform = TrainTransform()
    params = transform.draw(np.random.default_rng(0), 256, 340)
    function = transforms.TestCrops().apply if apply == "test" else lambda frames: transform.apply(frames, params)
    with pytest.raises(TypeError, match=r"frames must be torch.uint8, got torch.float32. Normalize on the device"):
        function(torch.zeros(2, 256, 340, 3))
    for shape in ((2, 3, 256, 340), (256, 340, 3), (0, 256, 340, 3), (2, 0, 340, 3), (2, 256, 340, 1)):
        with pytest.raises(ValueError, match=r"frames must be of shape \(T, H, W, 3\), none of it 0, got"):
            function(torch.zeros(shape, dtype=torch.uint8))


def test_frames_of_another_size_than_drawn():
    transform = TrainTransform()
    params = transform.draw(np.random.default_rng(0), 256, 340)
    with pytest.raises(ValueError, match=r"frames must be of size \(256, 340\) as drawn, got \(256, 341\)"):
        transform.apply(noise(1, 256, 341), params)


# ---- how they are carried ----------------------------------------------------------------------


def test_a_config_may_give_lists_and_all_travel_to_workers():
    transform = TrainTransform([256, 320], 224, 0.5)
    assert transform == TrainTransform()
    for thing in (transform, transforms.TestCrops("three"), transform.draw(np.random.default_rng(0), 256, 340)):
        assert pickle.loads(pickle.dumps(thing)) == thing
        with pytest.raises(dataclasses.FrozenInstanceError):
            thing.crop_size = 1
