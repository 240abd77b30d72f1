"""Mixup and cutmix of clips, by hand and by their statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.training.mixing import Mixing

Y = 5


def batch(num_clips=4, size=(12, 16), *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn((num_clips, 3, 2, *size), generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(Y, (num_clips,), generator=generator)
    return frames.contiguous(memory_format=torch.channels_last_3d), labels


def mix(mixing, frames, labels, num_classes=Y, *, seed=0, step=0, rank=0):
    return mixing.mix(frames, labels, num_classes, seed=seed, step=step, rank=rank)


def black_and_white(height=12, width=16):
    """Two clips, 0 and 1 everywhere, of classes 0 and 1."""
    frames = torch.zeros((2, 3, 4, height, width), dtype=torch.float64)
    frames[1] = 1
    return frames, torch.tensor([0, 1])


def one_hot(labels):
    return torch.nn.functional.one_hot(labels, Y).float()


@pytest.mark.parametrize("step", range(5))
def test_mixup_by_hand(step):
    weight = float(mix(Mixing(0.8), *black_and_white(), 2, step=step)[1][0, 0])
    frames, labels = batch()
    mixed, targets = mix(Mixing(0.8), frames, labels, step=step)
    assert 0 < weight < 1
    for n in range(4):
        torch.testing.assert_close(mixed[n], weight * frames[n] + (1 - weight) * frames[n - 1], rtol=0, atol=1e-6)
        expected = weight * one_hot(labels)[n] + (1 - weight) * one_hot(labels)[n - 1]
        torch.testing.assert_close(targets[n], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", range(5))
def test_cutmix_by_a_plain_loop(step):
    mask_HW = mix(Mixing(0.0, 1.0), *black_and_white(), 2, step=step)[0][0, 0, 0]
    frames, labels = batch()
    mixed, targets = mix(Mixing(0.0, 1.0, label_smoothing=0.1), frames, labels, step=step)
    weight = 1 - float(mask_HW.mean())
    for n in range(4):
        for y in range(12):
            for x in range(16):
                source = n - 1 if mask_HW[y, x] else n
                assert torch.equal(mixed[n, :, :, y, x], frames[source, :, :, y, x])
        for k in range(Y):
            own, other = (0.9 * int(labels[i] == k) + 0.1 / Y for i in (n, n - 1))
            assert float(targets[n, k]) == pytest.approx(weight * own + (1 - weight) * other, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 4))
def test_cutmix_takes_one_box_and_its_weight_is_the_area_that_is_left(step, height, width, alpha):
    mixed, targets = mix(Mixing(cutmix_alpha=alpha), *black_and_white(height, width), 2, step=step)
    assert (mixed == mixed[:, :1, :1]).all()  # in all channels and frames alike
    taken_HW = mixed[0, 0, 0]
    rows, columns = taken_HW.amax(1), taken_HW.amax(0)
    assert torch.equal(taken_HW, rows[:, None] * columns[None]) and set(rows.diff().abs().tolist()) <= {0, 1}
    assert (rows.diff() == 1).sum() <= 1 and (columns.diff() == 1).sum() <= 1
    assert targets[0].tolist() == pytest.approx([1 - float(taken_HW.mean()), float(taken_HW.mean())], abs=1e-6)
    assert targets.sum(1).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_smoothed_targets_give_torchs_smoothed_loss():
    frames, labels = batch()
    logits = torch.randn((4, Y), generator=torch.Generator().manual_seed(1))
    same, targets = mix(Mixing(label_smoothing=0.2), frames, labels)
    assert same is frames
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, targets), expected)
    assert torch.equal(mix(Mixing(), frames, labels)[1], one_hot(labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("mixing", [Mixing(0.8), Mixing(0.0, 1.0), Mixing(0.8, probability=0.0)])
def test_dtype_and_memory_order_are_kept(dtype, mixing):
    frames, labels = batch(dtype=dtype)
    before = frames.clone()
    mixed, targets = mix(mixing, frames, labels)
    assert type(mixed) is type(targets) is torch.Tensor
    assert mixed.dtype == dtype and mixed.stride() == frames.stride()
    assert mixed.is_contiguous(memory_format=torch.channels_last_3d)
    assert targets.dtype == torch.float32
    assert torch.equal(frames, before)


@pytest.mark.parametrize("mixing", [Mixing(0.8), Mixing(0.0, 1.0)])
def test_one_clip_is_mixed_with_itself(mixing):
    frames, labels = batch(1)
    mixed, targets = mix(mixing, frames, labels)
    torch.testing.assert_close(mixed, frames)
    torch.testing.assert_close(targets, one_hot(labels))


def test_draws():
    def kinds(mixing, n=600):
        """Of each step, the weight and whether a box was taken; None if nothing was mixed."""
        found = []
        for step in range(n):
            frames, labels = black_and_white(8, 8)
            mixed, targets = mix(mixing, frames, labels, 2, step=step)
            is_box = set(mixed.unique().tolist()) <= {0.0, 1.0}
            found.append(None if mixed is frames else (float(targets[0, 0]), is_box))
        return found

    assert kinds(Mixing(), 5) == kinds(Mixing(0.8, 1.0, probability=0.0), 5) == [None] * 5
    assert all(is_box for _, is_box in kinds(Mixing(0.0, 1.0, cutmix_probability=0.0), 100))
    # 600 draws, standard deviation 12
    assert 230 < sum(is_box for _, is_box in kinds(Mixing(0.8, 1.0))) < 370
    assert 230 < sum(kind is not None for kind in kinds(Mixing(0.8, probability=0.5))) < 370
    mixed_up = kinds(Mixing(0.8), 2000)
    assert not any(is_box for _, is_box in mixed_up)
    weights = np.array([weight for weight, _ in mixed_up])
    # Beta(a, a): mean 1 / 2, variance 1 / (4 (2 a + 1))
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / (4 * 2.6), abs=0.01)


def test_a_draw_is_a_function_of_seed_step_and_rank_and_leaves_the_random_state():
    frames, labels = batch()
    keys = [{}, {"seed": 1}, {"step": 1}, {"rank": 1}]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = [mix(Mixing(0.8, 1.0), frames, labels, **key) for key in keys]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again = [mix(Mixing(0.8, 1.0), frames, labels, **key) for key in keys]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert len({tuple(targets.flatten().tolist()) for _, targets in first}) == 4


def test_what_is_on():
    assert not Mixing().is_on and not Mixing().has_soft_targets
    assert not Mixing(label_smoothing=0.1).is_on and Mixing(label_smoothing=0.1).has_soft_targets
    assert Mixing(0.8).is_on and Mixing(0.0, 1.0).has_soft_targets
    assert not Mixing(0.8, probability=0.0).has_soft_targets


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup_alpha": -1}, "mixup_alpha must be 0"),
        ({"cutmix_alpha": math.inf}, "cutmix_alpha must be 0"),
        ({"probability": 1.1}, r"probability must be in \[0, 1\]"),
        ({"cutmix_probability": math.nan}, r"cutmix_probability must be in \[0, 1\]"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixing(**arguments)
