"""Mixup and cutmix against torchvision's with the same parameters, and by hand in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from video_gn.training.mixing import Mixing, MixParams, cutmix_box, mix, mixing_rng

Y = 5


def batch(num_clips=4, size=(12, 16), *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn((num_clips, 3, 2, *size), generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(Y, (num_clips,), generator=generator)
    return frames.contiguous(memory_format=torch.channels_last_3d), labels


def torchvisions(transform, frames_NCTHW, labels_N, params):
    # Its videos are (N, T, C, H, W). Its targets are float32, so it is given float64 ones.
    video = tv_tensors.Video(frames_NCTHW.transpose(1, 2))
    one_hot = torch.nn.functional.one_hot(labels_N, Y).to(frames_NCTHW.dtype)
    params = {**params, "labels": one_hot, "batch_size": len(labels_N)}
    return transform.transform(video, params).transpose(1, 2), transform.transform(one_hot, params)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.93])
def test_mixup_against_torchvision(weight):
    frames, labels = batch()
    mixed, targets = Mixing(mixup_alpha=1.0).apply(frames, labels, Y, MixParams(weight))
    expected, expected_targets = torchvisions(v2.MixUp(num_classes=Y), frames, labels, {"lam": weight})
    torch.testing.assert_close(mixed, torch.Tensor(expected.as_subclass(torch.Tensor)), rtol=0, atol=1e-14)
    torch.testing.assert_close(targets, expected_targets, rtol=0, atol=1e-15)


@pytest.mark.parametrize("box", [(0, 0, 12, 16), (3, 4, 9, 5), (0, 10, 2, 16), (5, 5, 5, 5)])
def test_cutmix_against_torchvision(box):
    frames, labels = batch()
    top, left, bottom, right = box
    weight = 1 - (bottom - top) * (right - left) / (12 * 16)
    mixed, targets = Mixing(cutmix_alpha=1.0).apply(frames, labels, Y, MixParams(weight, box))
    params = {"box": (left, top, right, bottom), "lam_adjusted": weight}
    expected, expected_targets = torchvisions(v2.CutMix(num_classes=Y), frames, labels, params)
    assert torch.equal(mixed, expected.as_subclass(torch.Tensor))
    torch.testing.assert_close(targets, expected_targets, rtol=0, atol=1e-15)


def test_cutmix_draws_torchvisions_box(monkeypatch):
    transform = v2.CutMix(num_classes=Y)
    for seed in range(200):
        u = np.random.default_rng(seed).random(4)
        params = Mixing(cutmix_alpha=1.0).draw(np.random.default_rng(seed), 30, 44)
        rng = np.random.default_rng(seed)
        rng.random(4)
        weight = rng.beta(1.0, 1.0)
        numbers = iter([int(u[3] * 44), int(u[2] * 30)])
        with monkeypatch.context() as patch:
            patch.setattr(transform, "_dist", type("Forced", (), {"sample": lambda self, shape: weight})())  # noqa: B023
            patch.setattr(torch, "randint", lambda high, size: torch.tensor([next(numbers)]))  # noqa: B023
            theirs = transform.make_params([torch.zeros(1, 3, 30, 44)])
        left, top, right, bottom = theirs["box"]
        assert params.box == (top, left, bottom, right)
        assert params.weight == pytest.approx(theirs["lam_adjusted"], abs=1e-12)


def test_by_a_plain_loop():
    frames, labels = batch(3, (6, 8))
    box, weight = (1, 2, 4, 7), 1 - 15 / 48
    mixed, targets = Mixing(cutmix_alpha=1.0, label_smoothing=0.1).apply(frames, labels, Y, MixParams(weight, box))
    for n in range(3):
        for y in range(6):
            for x in range(8):
                source = n - 1 if 1 <= y < 4 and 2 <= x < 7 else n
                assert torch.equal(mixed[n, :, :, y, x], frames[source, :, :, y, x])
        for k in range(Y):
            own, other = (0.9 * int(labels[i] == k) + 0.1 / Y for i in (n, n - 1))
            assert float(targets[n, k]) == pytest.approx(weight * own + (1 - weight) * other, abs=1e-15)


def test_smoothed_targets_give_torchs_smoothed_loss():
    frames, labels = batch()
    logits = torch.randn((4, Y), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    same, targets = Mixing(label_smoothing=0.2).apply(frames, labels, Y, MixParams(1.0))
    assert same is frames
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, targets), expected)
    plain = Mixing().apply(frames, labels, Y, MixParams(1.0))[1]
    assert torch.equal(plain, torch.nn.functional.one_hot(labels, Y).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("params", [MixParams(0.3), MixParams(0.5, (0, 0, 6, 16)), MixParams(1.0)])
def test_dtype_and_memory_order_are_kept(dtype, params):
    frames, labels = batch(dtype=dtype)
    before = frames.clone()
    mixed, targets = Mixing(0.8, 1.0).apply(frames, labels, Y, params)
    assert mixed.dtype == dtype and mixed.stride() == frames.stride()
    assert mixed.is_contiguous(memory_format=torch.channels_last_3d)
    assert targets.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(frames, before)


def test_one_clip_is_mixed_with_itself():
    frames, labels = batch(1)
    for params in (MixParams(0.3), MixParams(0.5, (0, 0, 6, 16))):
        mixed, targets = Mixing(0.8, 1.0).apply(frames, labels, Y, params)
        torch.testing.assert_close(mixed, frames)
        torch.testing.assert_close(targets, torch.nn.functional.one_hot(labels, Y).double())


def test_the_box_is_the_same_for_all_frames():
    frames = torch.zeros((2, 3, 4, 20, 20))
    frames[1] = 1
    mixed, _ = mix(frames, torch.tensor([0, 1]), 2, rng=np.random.default_rng(3), cutmix_alpha=1.0)
    assert (mixed == mixed[:, :1, :1]).all()
    assert 0 < mixed[0].mean() < 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 4))
def test_the_weight_is_the_area_that_is_left(seed, height, width, alpha):
    params = Mixing(cutmix_alpha=alpha).draw(np.random.default_rng(seed), height, width)
    frames = torch.zeros((2, 1, 1, height, width), dtype=torch.float64)
    frames[1] = 1
    mixed, targets = Mixing().apply(frames, torch.tensor([0, 1]), 2, params)
    assert float(mixed[0].mean()) == pytest.approx(1 - params.weight, abs=1e-12)
    assert targets[0].tolist() == pytest.approx([params.weight, 1 - params.weight], abs=1e-12)
    assert targets.sum(1).tolist() == pytest.approx([1, 1], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.integers(0, 39), st.integers(0, 29))
def test_a_box_lies_in_the_frame(weight, y, x):
    top, left, bottom, right = cutmix_box(weight, y, x, 40, 30)
    assert 0 <= top <= bottom <= 40 and 0 <= left <= right <= 30
    assert (bottom - top) * (right - left) <= (1 - weight) * 1200 + 1e-9


def test_draws():
    def draws(mixing, n=600):
        return [mixing.draw(mixing_rng(0, step, 0), 32, 32) for step in range(n)]

    assert all(p == MixParams(1.0) for p in draws(Mixing()))
    assert all(p == MixParams(1.0) for p in draws(Mixing(0.8, 1.0, probability=0.0)))
    assert all(p.box is None and p.weight < 1 for p in draws(Mixing(0.8)))
    assert all(p.box is not None for p in draws(Mixing(0.0, 1.0, cutmix_probability=0.0)))
    # 600 draws, standard deviation 12
    assert 230 < sum(p.box is not None for p in draws(Mixing(0.8, 1.0))) < 370
    assert 230 < sum(p != MixParams(1.0) for p in draws(Mixing(0.8, probability=0.5))) < 370
    weights = np.array([p.weight for p in draws(Mixing(0.8), 2000)])
    # Beta(a, a): mean 1 / 2, variance 1 / (4 (2 a + 1))
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / (4 * 2.6), abs=0.01)


def test_a_draw_is_a_function_of_seed_step_and_rank():
    mixing = Mixing(0.8, 1.0)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    first = [mixing.draw(mixing_rng(*key), 32, 32) for key in keys]
    assert first == [mixing.draw(mixing_rng(*key), 32, 32) for key in keys]
    assert len(set(first)) == 4
    frames, labels = batch()
    a, b = (mix(frames, labels, Y, rng=mixing_rng(0, 7, 1), mixup_alpha=0.8, cutmix_alpha=1.0) for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


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


def test_bad_batches():
    frames, labels = batch()
    mixing = Mixing(0.8)
    with pytest.raises(TypeError, match="floating point, got torch.uint8"):
        mixing.apply(frames.to(torch.uint8), labels, Y, MixParams(0.5))
    with pytest.raises(TypeError, match="labels must be torch.int64"):
        mixing.apply(frames, labels.int(), Y, MixParams(0.5))
    with pytest.raises(ValueError, match=r"frames must be of shape \(N, C, T, H, W\)"):
        mix(frames[0], labels, Y, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"labels of shape \(N,\)"):
        mixing.apply(frames, labels[:2], Y, MixParams(0.5))
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        mixing.apply(frames, labels, 0, MixParams(0.5))
    with pytest.raises(ValueError, match="box must lie in frames"):
        mixing.apply(frames, labels, Y, MixParams(0.5, (0, 0, 13, 3)))
    with pytest.raises(TypeError, match="rng must be a numpy Generator"):
        mixing.draw(torch.Generator(), 8, 8)
