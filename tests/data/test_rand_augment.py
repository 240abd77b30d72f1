"""RandAugment against torchvision's own, operation by operation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from video_gn.data._rand_augment import OPERATIONS, RandAugmentParams, _value
from video_gn.data.augment import RandAugment

THEIRS = v2.RandAugment()


def clip(num_frames=3, height=28, width=28, *, seed=0):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 150, width).astype(np.uint8)[None, None, :, None]
    frames = rng.integers(0, 100, (num_frames, height, width, 3), dtype=np.uint8) + ramp
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def test_the_same_operations():
    assert set(OPERATIONS) == set(THEIRS._AUGMENTATION_SPACE)


@pytest.mark.parametrize("name", OPERATIONS)
def test_values_against_torchvisions_table(name):
    magnitudes, signed = THEIRS._AUGMENTATION_SPACE[name]
    for height, width in ((224, 224), (112, 171), (33, 17)):
        table = magnitudes(31, height, width)
        for level in range(31):
            expected = 0.0 if table is None else float(table[level])
            expected = float(int(expected)) if name.startswith("Translate") else expected
            expected = 255 * expected if name == "Solarize" else expected
            # Operations that are not signed must never be turned around.
            assert _value(name, level, height, width) == expected
    assert signed or all(
        value >= 0
        for seed in range(40)
        for n, value in RandAugment(4).draw(np.random.default_rng(seed), 32, 32).operations
        if n == name
    )


SIGNED = [name for name in OPERATIONS if THEIRS._AUGMENTATION_SPACE[name][1]]


@pytest.mark.parametrize(("name", "sign"), [(n, 1) for n in OPERATIONS] + [(n, -1) for n in SIGNED])
@pytest.mark.parametrize("level", [0, 7, 9, 22, 30])
def test_operations_against_torchvision(name, level, sign):
    magnitudes, _ = THEIRS._AUGMENTATION_SPACE[name]
    frames = clip()
    before = frames.clone()
    value = sign * _value(name, level, 28, 28)
    got = RandAugment().apply(frames, RandAugmentParams(((name, value),)))
    table = magnitudes(31, 28, 28)
    magnitude = 0.0 if table is None else sign * float(table[level])
    expected = THEIRS._apply_image_or_video_transform(
        frames.contiguous(), name, magnitude, interpolation=InterpolationMode.NEAREST, fill={}
    )
    if name == "Contrast":  # the mean's last bit may differ
        assert (got.int() - expected.int()).abs().max() <= 1
    else:
        assert torch.equal(got, expected)
    assert torch.equal(frames, before)
    assert got.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("fill", [0, 128])
def test_moves_with_a_fill(name, interpolation, fill):
    frames = clip(6)
    value = -_value(name, 30, 28, 28)
    augment = RandAugment(interpolation=interpolation, fill_level=fill)
    got = augment.apply(frames, RandAugmentParams(((name, value),)))
    expected = THEIRS._apply_image_or_video_transform(
        frames.contiguous(),
        name,
        value,
        interpolation=InterpolationMode(interpolation),
        fill={torch.Tensor: fill or None},
    )
    # Bilinear weights in float32, in another order of the batch: a half may round to either level.
    assert (got.int() - expected.int()).abs().max() <= (interpolation == "bilinear")
    assert (got == fill).any()


def test_a_chain_is_its_operations_one_after_the_other():
    frames = clip()
    chain = (
        ("Contrast", 0.4), ("Equalize", 0.0), ("Rotate", 20.0), ("Identity", 0.0),
        ("Color", -0.5), ("Posterize", 5.0), ("AutoContrast", 0.0), ("Solarize", 180.0),
    )  # fmt: skip
    got = RandAugment().apply(frames, RandAugmentParams(chain))
    for operation in chain:
        frames = RandAugment().apply(frames, RandAugmentParams((operation,)))
    assert torch.equal(got, frames)


def test_draws():
    draws = [RandAugment(2, 9).draw(np.random.default_rng(seed), 32, 48) for seed in range(700)]
    counts = dict.fromkeys(OPERATIONS, 0)
    negative = dict.fromkeys(OPERATIONS, 0)
    for draw in draws:
        for name, value in draw.operations:
            counts[name] += 1
            negative[name] += value < 0
            assert abs(value) == _value(name, 9, 32, 48)
    # 1400 of 14: 100 each, standard deviation 9.6
    assert all(60 < n < 140 for n in counts.values())
    assert all(0.3 < negative[n] / counts[n] < 0.7 for n in ("ShearX", "Rotate", "Color", "TranslateY"))


def test_magnitude_std():
    def angles(std, magnitude=15):
        draws = (RandAugment(5, magnitude, std).draw(np.random.default_rng(s), 32, 32) for s in range(400))
        return np.abs([value for d in draws for name, value in d.operations if name == "Rotate"])

    assert set(angles(0.0)) == {15.0}
    spread = angles(3.0)
    assert abs(spread.mean() - 15) < 1 and abs(spread.std() - 3) < 0.6  # a degree is a bin
    assert angles(100.0).max() == 30.0 and angles(100.0).min() == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_any_size(seed, height, width):
    augment = RandAugment(3, 30, 5.0)
    got = augment.apply(clip(2, height, width), augment.draw(np.random.default_rng(seed), height, width))
    assert got.shape == (2, 3, height, width) and got.dtype == torch.uint8


BAD = [
    ({"num_ops": 0}, ValueError, "num_ops must be at least 1"),
    ({"num_ops": 1.5}, TypeError, "num_ops must be an integer"),
    ({"magnitude": 31}, ValueError, r"magnitude must be in \[0, 30\]"),
    ({"magnitude": -1}, ValueError, r"magnitude must be in \[0, 30\]"),
    ({"magnitude_std": -1}, ValueError, "magnitude_std must be 0 or above"),
    ({"interpolation": "bicubic"}, ValueError, "interpolation must be one of 'nearest', 'bilinear'"),
    ({"fill_level": 256}, ValueError, r"fill_level must be in \[0, 255\]"),
    ({"fill_level": 0.5}, TypeError, "fill_level must be an integer"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        RandAugment(**arguments)
