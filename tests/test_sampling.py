"""Frame indices against lists written by hand, naive loops, and the sources' own formulas."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_gn import sampling

# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video_frames", "num_frames", "stride", "start", "expected"),
    [
        # 10 - 4 * 2 = 2: starts 0, 1, 2, a third of [0, 1) each
        (10, 4, 2, 0.0, [0, 2, 4, 6]),
        (10, 4, 2, 0.33, [0, 2, 4, 6]),
        (10, 4, 2, 0.34, [1, 3, 5, 7]),
        (10, 4, 2, 0.66, [1, 3, 5, 7]),
        (10, 4, 2, 0.67, [2, 4, 6, 8]),
        (10, 4, 2, 0.999, [2, 4, 6, 8]),
        # exactly T S frames, and one more
        (8, 4, 2, 0.999, [0, 2, 4, 6]),
        (9, 4, 2, 0.499, [0, 2, 4, 6]),
        (9, 4, 2, 0.5, [1, 3, 5, 7]),
        # N < T S although the span of 7 fits: the start is 0, as the source has it
        (7, 4, 2, 0.9, [0, 2, 4, 6]),
        # too short: loop
        (6, 4, 2, 0.9, [0, 2, 4, 0]),
        (5, 4, 2, 0.9, [0, 2, 4, 1]),
        (3, 4, 2, 0.5, [0, 2, 1, 0]),
        (2, 5, 1, 0.0, [0, 1, 0, 1, 0]),
        (1, 4, 2, 0.5, [0, 0, 0, 0]),
        # one frame
        (5, 1, 1, 0.8, [4]),
        (5, 1, 1, 0.79, [3]),
        (5, 1, 8, 0.9, [0]),
        (5, 3, 1, 0.999, [2, 3, 4]),
    ],
)
def test_train_clip_by_hand(video_frames, num_frames, stride, start, expected):
    clip = sampling.train_clip(video_frames, num_frames=num_frames, stride=stride, start=start)
    assert clip.dtype == np.int64
    assert clip.tolist() == expected


def test_train_clip_32x2_and_64x1_of_300_frames():
    # 300 - 64 = 236: the last clip is 236, 238, ..., 298, and frame 299 is never seen
    assert sampling.train_clip(300, num_frames=32, stride=2, start=0.0).tolist() == list(range(0, 64, 2))
    last = math.nextafter(1, 0)
    assert sampling.train_clip(300, num_frames=32, stride=2, start=last).tolist() == list(range(236, 300, 2))
    assert sampling.train_clip(300, num_frames=64, stride=1, start=last).tolist() == list(range(236, 300))


@pytest.mark.parametrize(
    ("video_frames", "expected"), [(5, [0, 2, 4, 4]), (6, [0, 2, 4, 5]), (7, [0, 2, 4, 6]), (1, [0, 0, 0, 0])]
)
def test_past_the_end_the_last_frame(video_frames, expected):
    assert sampling.train_clip(video_frames, num_frames=4, stride=2, start=0.5, past_end="last").tolist() == expected


def test_a_start_just_below_one_is_the_last_start_for_every_length():
    last = math.nextafter(1, 0)
    for video_frames in [*range(1, 300), 10**6, 2**53 - 2]:
        assert sampling.train_clip(video_frames, num_frames=1, start=last).tolist() == [video_frames - 1]


def test_starts_drawn_by_a_generator_are_uniform_with_both_ends():
    rng = np.random.default_rng(0)
    starts = [int(sampling.train_clip(20, num_frames=4, stride=4, rng=rng)[0]) for _ in range(5000)]
    counts = np.bincount(starts)
    assert len(counts) == 5  # 0 ... 20 - 16
    # 1000 expected with a standard deviation of 28: four of them, and the seed is fixed
    assert np.abs(counts - 1000).max() < 4 * 28.3


def test_a_generator_gives_what_its_number_gives_and_is_used_once():
    for seed in range(20):
        rng, twin = np.random.default_rng(seed), np.random.default_rng(seed)
        clip = sampling.train_clip(300, num_frames=8, stride=8, rng=rng)
        start = twin.random()
        assert clip.tolist() == sampling.train_clip(300, num_frames=8, stride=8, start=start).tolist()
        assert rng.random() == twin.random()


# ---- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video_frames", "num_clips", "num_frames", "stride", "expected"),
    [
        (10, 2, 3, 2, [[0, 2, 4], [5, 7, 9]]),
        (10, 3, 3, 2, [[0, 2, 4], [3, 5, 7], [6, 8, 0]]),  # 3.33 -> 3, 6.67 -> 6; 10 mod 10
        (9, 2, 3, 2, [[0, 2, 4], [4, 6, 8]]),
        (10, 1, 3, 2, [[0, 2, 4]]),
        (4, 2, 3, 2, [[0, 2, 0], [2, 0, 2]]),
        (2, 3, 2, 1, [[0, 1], [0, 1], [1, 0]]),  # 0.67 -> 0, 1.33 -> 1
        (1, 3, 2, 4, [[0, 0], [0, 0], [0, 0]]),
        (5, 5, 1, 1, [[0], [1], [2], [3], [4]]),
    ],
)
def test_nonlocal_by_hand(video_frames, num_clips, num_frames, stride, expected):
    clips = sampling.test_clips(video_frames, num_clips=num_clips, num_frames=num_frames, stride=stride)
    assert clips.dtype == np.int64
    assert clips.tolist() == expected


def test_nonlocal_ten_clips_32x2_of_300_frames():
    clips = sampling.test_clips(300, num_clips=10, num_frames=32, stride=2, spacing="nonlocal")
    assert clips[:, 0].tolist() == [0, 30, 60, 90, 120, 150, 180, 210, 240, 270]
    assert clips[7].tolist() == list(range(210, 274, 2))
    # the last two run past the end and come round: 240 ... 298, 0, 2; 270 ... 298, 0 ... 32
    assert clips[8].tolist() == [*range(240, 300, 2), 0, 2]
    assert clips[9].tolist() == [*range(270, 300, 2), *range(0, 34, 2)]


@pytest.mark.parametrize(
    ("video_frames", "num_clips", "num_frames", "stride", "expected"),
    [
        (10, 2, 3, 2, [[0, 2, 4], [5, 7, 9]]),  # 10 - 5 = 5
        (10, 3, 3, 2, [[0, 2, 4], [2, 4, 6], [5, 7, 9]]),  # 2.5 rounds to the even 2
        (12, 3, 3, 2, [[0, 2, 4], [4, 6, 8], [7, 9, 11]]),  # 3.5 rounds to the even 4
        (10, 1, 3, 2, [[2, 4, 6]]),  # the middle, 5 // 2
        (5, 3, 3, 2, [[0, 2, 4]] * 3),
        (4, 2, 3, 2, [[0, 2, 0]] * 2),
        (1, 2, 2, 1, [[0, 0]] * 2),
        (7, 4, 1, 3, [[0], [2], [4], [6]]),
    ],
)
def test_uniform_by_hand(video_frames, num_clips, num_frames, stride, expected):
    clips = sampling.test_clips(
        video_frames, num_clips=num_clips, num_frames=num_frames, stride=stride, spacing="uniform"
    )
    assert clips.tolist() == expected


def test_uniform_ten_clips_32x2_of_300_frames_end_on_the_last_frame():
    clips = sampling.test_clips(300, num_clips=10, num_frames=32, stride=2, spacing="uniform")
    # 300 - 63 = 237, 237 / 9 = 26.33
    assert clips[:, 0].tolist() == [0, 26, 53, 79, 105, 132, 158, 184, 211, 237]
    assert clips[-1].tolist() == list(range(237, 300, 2))


@pytest.mark.parametrize(
    ("video_frames", "num_clips", "num_frames", "stride", "expected"),
    [
        (100, 2, 8, 8, [[0, 9, 18, 27, 36, 45, 54, 63], [18, 27, 36, 45, 54, 63, 72, 81]]),  # (100 - 64) / 2
        (11, 2, 4, 2, [[0, 2, 4, 7], [1, 3, 6, 8]]),  # 7 / 3 apart, from 0 and 1.5: 1.5, 3.83, 6.17, 8.5
        (6, 2, 4, 2, [[0, 2, 4, 5]] * 2),
        (5, 2, 1, 2, [[0], [1]]),  # from 0 and 1.5
        (1, 2, 3, 2, [[0, 0, 0]] * 2),
    ],
)
def test_slowfast_by_hand(video_frames, num_clips, num_frames, stride, expected):
    clips = sampling.test_clips(
        video_frames,
        num_clips=num_clips,
        num_frames=num_frames,
        stride=stride,
        spacing="slowfast",
        past_end="last",
    )
    assert clips.tolist() == expected


GRID = [
    (n, k, t, s)
    for n in [*range(1, 40), 63, 64, 65, 127, 128, 249, 250, 299, 300, 301, 1800]
    for k in (1, 2, 3, 10)
    for t, s in [(1, 1), (4, 1), (4, 2), (8, 8), (32, 2), (64, 1), (16, 4)]
]


def test_nonlocal_against_a_loop_and_the_sources_float32():
    for n, k, t, s in GRID:
        clips = sampling.test_clips(n, num_clips=k, num_frames=t, stride=s)
        assert clips.tolist() == [[(int(n / k * j) % n + s * i) % n for i in range(t)] for j in range(k)]
        gap = np.float32(n) / np.float32(k)
        assert clips[:, 0].tolist() == [int(gap * np.float32(j)) % n for j in range(k)]


def test_uniform_against_a_loop_with_pythons_round():
    for n, k, t, s in GRID:
        clips = sampling.test_clips(n, num_clips=k, num_frames=t, stride=s, spacing="uniform")
        most = max(n - ((t - 1) * s + 1), 0)
        starts = [round(j * (most / (k - 1))) for j in range(k)] if k > 1 else [most // 2]
        assert clips.tolist() == [[(a + s * i) % n for i in range(t)] for a in starts]


@pytest.mark.parametrize(("fps", "ratio"), [(30.0, 1), (25.0, Fraction(5, 6)), (60.0, 2), (15.0, Fraction(1, 2))])
def test_slowfast_against_linspace_clamped_and_cut(fps, ratio):
    import torch

    differing = total = 0
    for n, k, t, s in GRID:
        clips = sampling.test_clips(
            n, num_clips=k, num_frames=t, stride=s, spacing="slowfast", past_end="last", fps=fps, target_fps=30
        )
        size = t * s * fps / 30
        for j, clip in enumerate(clips.tolist()):
            start = max(n - size, 0) * j / k
            theirs = torch.linspace(start, start + size - 1, t).clamp(0, n - 1).long().tolist()
            exact_start = max(n - t * s * ratio, 0) * Fraction(j, k)
            for i, (a, b) in enumerate(zip(clip, theirs, strict=True)):
                total += 1
                if a == b:
                    continue
                # Theirs is float32: only a position within its rounding of a whole number may differ.
                # Positions are below 2048 = 2**11, so a float32 is good to 2**-13; a few operations, 4 of these.
                position = exact_start + i * (t * s * ratio - 1) / (t - 1)
                assert abs(a - b) == 1 and abs(position - round(position)) < 4 * 2**-13
                differing += 1
    assert differing < total / 100


@pytest.mark.parametrize(
    ("video_frames", "num_frames", "stride", "expected"),
    [
        (10, 3, 2, [2, 4, 6]),
        (11, 3, 2, [3, 5, 7]),
        (5, 3, 2, [0, 2, 4]),
        (4, 3, 2, [0, 2, 0]),
        (1, 2, 1, [0, 0]),
        (9, 1, 1, [4]),
        (300, 32, 2, list(range(118, 182, 2))),
    ],
)
def test_center_clip_by_hand(video_frames, num_frames, stride, expected):
    assert sampling.center_clip(video_frames, num_frames=num_frames, stride=stride).tolist() == expected


def test_center_clip_past_the_end():
    assert sampling.center_clip(4, num_frames=3, stride=2, past_end="last").tolist() == [0, 2, 3]


# ---- resampling --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "target_fps", "expected"),
    [
        (30, 30, [0, 2, 4, 6, 8, 10]),
        (60, 30, [0, 4, 8, 12, 16, 20]),
        (15, 30, [0, 1, 2, 3, 4, 5]),
        (25, 30, [0, 1, 3, 5, 6, 8]),  # 5/3 apart: 0, 1.67, 3.33, 5, 6.67, 8.33
        (24, 30, [0, 1, 3, 4, 6, 8]),  # 1.6 apart: 0, 1.6, 3.2, 4.8, 6.4, 8
        (7.5, 30, [0, 0, 1, 1, 2, 2]),
        (30000 / 1001, 30, [0, 1, 3, 5, 7, 9]),  # 1.998 apart
        (60000 / 1001, 30000 / 1001, [0, 4, 8, 12, 16, 20]),
        (59.94, 29.97, [0, 4, 8, 12, 16, 20]),
    ],
)
def test_resampled_clip_by_hand(fps, target_fps, expected):
    arguments = {"num_frames": 6, "stride": 2, "fps": fps, "target_fps": target_fps}
    assert sampling.train_clip(100, start=0.0, **arguments).tolist() == expected
    assert sampling.test_clips(100, num_clips=2, **arguments).tolist() == [expected, [50 + i for i in expected]]


def test_resampled_train_starts_leave_room():
    # 4 frames 4 apart take 16 of 20 frames: starts 0 ... 4
    last = sampling.train_clip(20, num_frames=4, stride=2, start=0.999, fps=60, target_fps=30)
    assert last.tolist() == [4, 8, 12, 16]
    # 4 frames 5/3 apart take 6.67 of 10 frames: starts 0 ... 3
    last = sampling.train_clip(10, num_frames=4, stride=2, start=0.999, fps=25, target_fps=30)
    assert last.tolist() == [3, 4, 6, 8]


def test_resampled_uniform_and_center_by_hand():
    # span 3 * 5/3 + 1 = 6 of 10 frames: starts 0, 2, 4; the middle 2
    arguments = {"num_frames": 4, "stride": 2, "fps": 25, "target_fps": 30}
    clips = sampling.test_clips(10, num_clips=3, spacing="uniform", **arguments)
    assert clips.tolist() == [[0, 1, 3, 5], [2, 3, 5, 7], [4, 5, 7, 9]]
    assert sampling.center_clip(10, **arguments).tolist() == [2, 3, 5, 7]


def test_no_frame_is_lost_to_rounding():
    for numerator, denominator in [(30000, 1001), (24000, 1001), (60000, 1001), (15, 1), (25, 1), (12800, 1287)]:
        fps = numerator / denominator
        for target in (30, 25, 24):
            exact = Fraction(numerator, denominator) / target
            clip = sampling.train_clip(10**6, num_frames=64, stride=8, start=0.0, fps=fps, target_fps=target)
            assert clip.tolist() == [math.floor(t * 8 * exact) for t in range(64)]


# ---- what always holds -------------------------------------------------------------------------

counts = st.integers(1, 400)
clips = st.integers(1, 64)
strides = st.integers(1, 16)
rates = st.one_of(st.none(), st.sampled_from([7.5, 15, 24000 / 1001, 25, 29.97, 30, 60]), st.floats(1, 240))
spacings = st.sampled_from(["nonlocal", "uniform", "slowfast"])
past_ends = st.sampled_from(["loop", "last"])


@given(counts, st.integers(1, 12), clips, strides, spacings, past_ends, rates)
def test_indices_lie_in_the_video_and_starts_ascend(n, k, t, s, spacing, past_end, fps):
    got = sampling.test_clips(
        n,
        num_clips=k,
        num_frames=t,
        stride=s,
        spacing=spacing,
        past_end=past_end,
        fps=fps,
        target_fps=fps and 30,
    )
    assert got.shape == (k, t) and got.dtype == np.int64
    assert got.min() >= 0 and got.max() < n
    assert (np.diff(got[:, 0]) >= 0).all()
    if past_end == "last":
        assert (np.diff(got, axis=1) >= 0).all()
    if spacing == "uniform" and k > 1 and not fps and n >= (t - 1) * s + 1:
        assert got[0, 0] == 0 and got[-1, -1] == n - 1  # from the first frame to the last


@given(counts, clips, strides, st.floats(0, 1, exclude_max=True), past_ends, rates)
def test_train_clips_lie_in_the_video_and_loop_only_where_they_must(n, t, s, start, past_end, fps):
    got = sampling.train_clip(n, num_frames=t, stride=s, start=start, past_end=past_end, fps=fps, target_fps=fps and 30)
    assert got.shape == (t,)
    assert got.min() >= 0 and got.max() < n
    if not fps and n >= t * s:
        assert (np.diff(got) == s).all()
    if not fps and n < t * s:
        assert got[0] == 0


@given(counts, st.integers(1, 12), clips, strides, spacings, past_ends, st.floats(0.5, 500))
def test_the_same_rate_changes_nothing(n, k, t, s, spacing, past_end, fps):
    shared = {"num_frames": t, "stride": s, "past_end": past_end}
    same = {"fps": fps, "target_fps": fps}
    for plain, resampled in [
        (
            sampling.test_clips(n, num_clips=k, spacing=spacing, **shared),
            sampling.test_clips(n, num_clips=k, spacing=spacing, **shared, **same),
        ),
        (sampling.train_clip(n, start=0.7, **shared), sampling.train_clip(n, start=0.7, **shared, **same)),
        (sampling.center_clip(n, **shared), sampling.center_clip(n, **shared, **same)),
    ]:
        assert np.array_equal(plain, resampled)


@given(counts, clips, strides, st.floats(1, 240))
def test_without_a_target_rate_the_rate_is_unused(n, t, s, fps):
    plain = sampling.center_clip(n, num_frames=t, stride=s)
    assert np.array_equal(plain, sampling.center_clip(n, num_frames=t, stride=s, fps=fps))
