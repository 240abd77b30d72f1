"""Augmentation against torchvision's own functions, and against plain loops where it has none."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from video_gn.data.augment import (
    Augmentation,
    ColorJitter,
    ColorJitterParams,
    RandAugment,
    RandomErasing,
    RandomGreyscale,
    RandomResizedCrop,
    ResizedCropParams,
)
from video_gn.data.crops import TrainTransform


def clip(num_frames=3, height=24, width=30, *, seed=0, smooth=False):
    """uint8 (T, C, H, W) in the memory order T, H, W, C."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    if smooth:
        frames = frames // 8 + np.linspace(40, 180, width, dtype=np.uint8)[None, None, :, None]
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def still(num_frames=4, height=24, width=24, *, seed=0):
    one = clip(1, height, width, seed=seed).permute(0, 2, 3, 1)
    return one.repeat(num_frames, 1, 1, 1).permute(0, 3, 1, 2)


def thwc(frames_TCHW):
    return frames_TCHW.permute(0, 2, 3, 1).contiguous()


def levels_apart(a, b):
    return int((a.int() - b.int()).abs().max())


def is_thwc(frames_TCHW):
    return frames_TCHW.permute(0, 2, 3, 1).is_contiguous()


EVERYTHING = Augmentation(
    RandomResizedCrop(24),
    RandAugment(num_ops=3, magnitude_std=2.0),
    ColorJitter(0.4, 0.4, 0.4, 0.2),
    RandomGreyscale(0.5),
    RandomErasing(0.7),
)


# ---- resized crop ------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 40, 60), (3, 7, 20, 31), (5, 5, 16, 16), (39, 59, 1, 1)])
def test_resized_crop_against_torchvision(box, flip):
    frames = clip(3, 40, 60)
    got = RandomResizedCrop(16).apply(thwc(frames), ResizedCropParams(*box, 16, flip))
    expected = F.resized_crop(frames.contiguous(), *box, [16, 16], antialias=True)
    assert got.shape == (3, 3, 16, 16)
    assert levels_apart(got, F.horizontal_flip(expected) if flip else expected) <= 1  # another memory order
    assert got.permute(0, 2, 3, 1).is_contiguous()


def replay(monkeypatch, numbers):
    """torchvision draws these numbers, in the order in which it asks."""
    left = iter(numbers)
    monkeypatch.setattr(
        torch.Tensor, "uniform_", lambda t, a, b: t.fill_(float(a) + (float(b) - float(a)) * next(left))
    )
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.tensor([int(next(left) * (high - low))]))


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (64, 64), (20, 300), (300, 20)])
def test_resized_crop_draws_as_torchvision_does(size, monkeypatch):
    differing = 0
    for seed in range(60):
        ours = RandomResizedCrop(32, scale=(0.2, 1.0)).draw(np.random.default_rng(seed), *size)
        rng = np.random.default_rng(seed)
        tries, place = rng.random((10, 2)), rng.random(2)
        # Which of the ten is taken, by hand: torchvision draws the place right after it.
        numbers = []
        for u_area, u_ratio in tries.tolist():
            numbers += [u_area, u_ratio]
            area = size[0] * size[1] * (0.2 + 0.8 * u_area)
            ratio = math.exp(math.log(3 / 4) + u_ratio * (math.log(4 / 3) - math.log(3 / 4)))
            if 0 < round(math.sqrt(area * ratio)) <= size[1] and 0 < round(math.sqrt(area / ratio)) <= size[0]:
                numbers += [place[1], place[0]]
                break
        with monkeypatch.context() as patch:
            replay(patch, numbers)
            theirs = v2.RandomResizedCrop(32, scale=(0.2, 1.0)).make_params([torch.zeros(3, *size)])
        mine = {"top": ours.top, "left": ours.left, "height": ours.box_height, "width": ours.box_width}
        differing += mine != theirs  # its ratio is float32, and may round to the next pixel
        assert all(abs(mine[k] - theirs[k]) <= 1 for k in mine)
    assert differing <= 1


def test_resized_crop_has_torchvisions_distribution():
    # 2000 of either: with this seed the largest of the four distances is far below the 1 in 10,000 bound.
    torch.manual_seed(0)
    transform, rng = RandomResizedCrop(32), np.random.default_rng(0)
    theirs = v2.RandomResizedCrop(32)
    picture = torch.zeros(3, 90, 120)
    a = np.array(
        [[p.top, p.left, p.box_height, p.box_width] for p in (transform.draw(rng, 90, 120) for _ in range(2000))]
    )
    b = np.array(
        [
            [p[k] for k in ("top", "left", "height", "width")]
            for p in (theirs.make_params([picture]) for _ in range(2000))
        ]
    )
    for column in range(4):
        grid = np.arange(-1, 121)
        cdf = [np.searchsorted(np.sort(x[:, column]), grid, side="right") / 2000 for x in (a, b)]
        assert np.abs(cdf[0] - cdf[1]).max() < 2.23 * math.sqrt(2 / 2000)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 500), st.integers(1, 500))
def test_a_resized_crop_lies_in_the_frame(seed, height, width):
    p = RandomResizedCrop(8).draw(np.random.default_rng(seed), height, width)
    assert 0 <= p.top <= p.top + p.box_height <= height and p.box_height >= 1
    assert 0 <= p.left <= p.left + p.box_width <= width and p.box_width >= 1


def test_a_draw_takes_the_same_from_the_generator_whatever_the_size():
    for part in (RandomResizedCrop(8), RandomErasing(0.5), RandAugment()):
        after = set()
        for size in ((10, 10), (10, 900), (333, 222)):
            rng = np.random.default_rng(3)
            part.draw(rng, *size)
            after.add(rng.random())
        assert len(after) == 1


# ---- color jitter ------------------------------------------------------------------------------


def test_color_jitter_against_torchvision():
    frames = clip(2, 20, 20, smooth=True)
    names = ["brightness", "contrast", "saturation", "hue"]
    factors = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.4, "hue": -0.1}
    theirs = v2.ColorJitter(0.4, 0.4, 0.4, 0.2)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        params = ColorJitterParams(tuple((names[i], factors[names[i]]) for i in order))
        got = ColorJitter().apply(frames, params)
        forced = {f"{k}_factor": v for k, v in factors.items()} | {"fn_idx": torch.tensor(order)}
        # A level off before the next change may become two.
        assert levels_apart(got, theirs.transform(frames, forced)) <= 2


def test_color_jitter_draws():
    jitter = ColorJitter(0.4, 1.5, 0.0, 0.1)
    draws = [jitter.draw(np.random.default_rng(seed)).changes for seed in range(300)]
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.0, 2.5), ("hue", -0.1, 0.1)):
        values = np.array([dict(d)[name] for d in draws])
        assert values.min() >= low and values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.15 * (high - low)
        assert values.max() - values.min() > 0.9 * (high - low)
    assert all("saturation" not in dict(d) for d in draws)
    assert len({tuple(name for name, _ in d) for d in draws}) == 6
    on = sum(bool(ColorJitter(0.4, probability=0.3).draw(np.random.default_rng(s)).changes) for s in range(500))
    assert 100 < on < 200


def test_off_and_certain():
    frames = clip()
    rng = np.random.default_rng(0)
    for part in (ColorJitter(), ColorJitter(0.4, probability=0.0), RandomGreyscale(0.0)):
        assert part.apply(frames, part.draw(rng)) is frames
    erasing = RandomErasing(0.0)
    assert erasing.apply(frames, erasing.draw(rng, 24, 30)) is frames
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert RandomGreyscale(1.0).draw(rng)
        assert ColorJitter(0.4).draw(rng).changes
        assert RandomErasing(1.0, scale=(0.1, 0.2)).draw(rng, 100, 100).box_height


def test_greyscale_against_a_plain_loop():
    frames = clip(2, 12, 10)
    got = RandomGreyscale(1.0).apply(frames, True)
    for (t, y, x), level in np.ndenumerate(got[:, 0].numpy()):
        r, g, b = frames[t, :, y, x].tolist()
        assert level == int(0.2989 * r + 0.587 * g + 0.114 * b)
    assert torch.equal(got, got[:, :1].expand(-1, 3, -1, -1)) and is_thwc(got)


# ---- erasing -----------------------------------------------------------------------------------


def test_erasing_by_a_plain_loop():
    frames = clip(3, 24, 30)
    before = frames.clone()
    erasing = RandomErasing(1.0, value="mean", mean=(0.2, 0.4, 0.6))
    p = erasing.draw(np.random.default_rng(1), 24, 30)
    got = erasing.apply(frames, p)
    expected = before.clone()
    for t in range(3):
        for y in range(p.top, p.top + p.box_height):
            for x in range(p.left, p.left + p.box_width):
                for c, level in enumerate((51, 102, 153)):
                    expected[t, c, y, x] = level
    assert torch.equal(got, expected)
    assert torch.equal(frames, before)  # the decoder's frames are not written to
    assert is_thwc(got)


def test_noise_is_one_picture_of_the_right_mean_and_spread():
    frames = torch.zeros((3, 3, 200, 200), dtype=torch.uint8)
    mean, std = (0.5, 0.45, 0.4), (0.1, 0.12, 0.08)
    erasing = RandomErasing(1.0, scale=(0.3, 0.3), mean=mean, std=std)
    p = erasing.draw(np.random.default_rng(0), 200, 200)
    box = erasing.apply(frames, p)[:, :, p.top : p.top + p.box_height, p.left : p.left + p.box_width].double() / 255
    assert torch.equal(box[0], box[1]) and torch.equal(box[0], box[2])
    # 12,000 pixels: the mean's standard error is below 0.0011
    torch.testing.assert_close(box[0].mean((1, 2)), torch.tensor(mean).double(), rtol=0, atol=0.005)
    torch.testing.assert_close(box[0].std((1, 2)), torch.tensor(std).double(), rtol=0, atol=0.005)
    assert (box[0, 0] - box[0, 1]).abs().max() > 0.1  # each channel has its own


def test_erasing_draws_as_torchvision_does(monkeypatch):
    for seed in range(60):
        ours = RandomErasing(1.0, scale=(0.02, 0.33), ratio=(0.3, 3.3)).draw(np.random.default_rng(seed), 90, 120)
        rng = np.random.default_rng(seed)
        rng.random()
        (u_area, u_ratio), place = rng.random((10, 2))[0].tolist(), rng.random(2)
        with monkeypatch.context() as patch:
            replay(patch, [u_area, u_ratio, place[0], place[1]])
            try:
                theirs = v2.RandomErasing(1.0, scale=(0.02, 0.33), ratio=(0.3, 3.3)).make_params(
                    [torch.zeros(3, 90, 120)]
                )
            except StopIteration:
                continue  # the first box does not fit
        mine = (ours.top, ours.left, ours.box_height, ours.box_width)
        assert all(abs(a - b) <= 1 for a, b in zip(mine, (theirs[k] for k in "ijhw"), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 300))
def test_an_erased_box_lies_in_the_frame(seed, height, width):
    p = RandomErasing(1.0).draw(np.random.default_rng(seed), height, width)
    assert 0 <= p.top <= p.top + p.box_height <= height
    assert 0 <= p.left <= p.left + p.box_width <= width
    assert (p.box_height == 0) == (p.box_width == 0)


# ---- all together ------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [TrainTransform((32, 40), 24), RandomResizedCrop(24)])
def test_off_is_the_crop_alone_bit_for_bit(crop):
    frames = thwc(clip(4, 50, 70))
    for seed in range(5):
        alone = crop.apply(frames, crop.draw(np.random.default_rng([seed, 1]), 50, 70))
        augmentation = Augmentation(crop)
        got = augmentation.apply(frames, augmentation.draw(np.random.default_rng([seed, 1]), 50, 70))
        assert torch.equal(got, alone) and got.stride() == alone.stride()
    assert augmentation.crop_px == 24


def test_equal_seeds_draw_equal_and_parts_do_not_disturb_each_other():
    frames = thwc(clip(3, 50, 70))
    a, b = (EVERYTHING.draw(np.random.default_rng(7), 50, 70) for _ in range(2))
    assert a == b and hash(a) == hash(b) and pickle.loads(pickle.dumps(a)) == a
    assert torch.equal(EVERYTHING.apply(frames, a), EVERYTHING.apply(frames, b))
    assert a != EVERYTHING.draw(np.random.default_rng(8), 50, 70)
    for name in ("rand_augment", "color", "grey", "erasing"):
        less = dataclasses.replace(EVERYTHING, **{name: None}).draw(np.random.default_rng(7), 50, 70)
        assert less == dataclasses.replace(a, **{name: None})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_a_still_video_stays_still_and_parts_of_a_clip_fit(seed):
    params = EVERYTHING.draw(np.random.default_rng(seed), 40, 52)
    got = EVERYTHING.apply(thwc(still(4, 40, 52, seed=seed % 100)), params)
    assert got.shape == (4, 3, 24, 24) and got.dtype == torch.uint8
    assert (got == got[:1]).all()
    frames = thwc(clip(5, 40, 52, seed=seed % 100))
    before = frames.clone()
    whole = EVERYTHING.apply(frames, params)
    assert torch.equal(whole, torch.cat([EVERYTHING.apply(frames[:2], params), EVERYTHING.apply(frames[2:], params)]))
    assert torch.equal(frames, before)
    assert is_thwc(whole)


BAD = [
    (lambda: RandomResizedCrop(0), ValueError, "crop_px must be at least 1"),
    (lambda: RandomResizedCrop(1.5), TypeError, "crop_px must be an integer"),
    (lambda: RandomResizedCrop(scale=(0.5, 0.2)), ValueError, "scale must be two ascending numbers"),
    (lambda: RandomResizedCrop(scale=(0.0, 0.2)), ValueError, "scale must be two ascending numbers above 0"),
    (lambda: RandomResizedCrop(scale=(0.5, 1.2)), ValueError, "at most 1"),
    (lambda: RandomResizedCrop(ratio=(1.0,)), ValueError, "ratio must be two ascending numbers"),
    (lambda: RandomResizedCrop(ratio=(1.0, math.inf)), ValueError, "ratio must be two ascending numbers"),
    (lambda: RandomResizedCrop(flip=1.5), ValueError, r"flip must be in \[0, 1\]"),
    (lambda: ColorJitter(-0.1), ValueError, "brightness must be 0"),
    (lambda: ColorJitter(contrast=math.nan), ValueError, "contrast must be 0"),
    (lambda: ColorJitter(saturation=math.inf), ValueError, "saturation must be 0"),
    (lambda: ColorJitter(hue=0.6), ValueError, r"hue must be in \[0, 0.5\]"),
    (lambda: ColorJitter(probability=2), ValueError, "probability must be in"),
    (lambda: RandomGreyscale(-1), ValueError, "probability must be in"),
    (lambda: RandomErasing(2), ValueError, "probability must be in"),
    (lambda: RandomErasing(scale=(0.2, 3.0)), ValueError, "scale must be two ascending"),
    (lambda: RandomErasing(ratio=(3.0, 0.3)), ValueError, "ratio must be two ascending"),
    (lambda: RandomErasing(value="zero"), ValueError, "value must be one of 'random', 'mean'"),
    (lambda: RandomErasing(mean=(0.5, 0.5)), ValueError, "mean must be three numbers"),
    (lambda: RandomErasing(std=(0.5, 0.5, 20)), ValueError, "std must be three numbers"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bad_frames():
    crop = RandomResizedCrop(8)
    with pytest.raises(TypeError, match=r"must be torch.uint8"):
        crop.apply(thwc(clip()).float(), crop.draw(np.random.default_rng(0), 24, 30))
