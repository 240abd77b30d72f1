"""Windows at a constant rate are the clips of `sampling`; at others, the frames shown at each time."""

from fractions import Fraction

import numpy as np
import pytest

from video_gn import sampling
from video_gn.errors import SettingError
from video_gn.timelines.windows import place_windows

RATES = (25.0, 30.0, 30000 / 1001, 60000 / 1001, 15.0, 240.0)


def place(seconds, end=None, *, every, num_frames=4, stride=2, fps=25.0, target_fps=None):
    seconds = np.asarray(seconds, dtype=np.float64)
    return place_windows(
        seconds,
        seconds[-1] + 1 / fps if end is None else end,
        every_seconds=every,
        num_frames=num_frames,
        stride=stride,
        fps=fps,
        target_fps=target_fps,
    )


@pytest.mark.parametrize("target_fps", [None, 30.0, 24.0, 8.0])
@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("clock", [None, 1000, 90_000, 600])
def test_a_constant_rate_has_the_clips_of_index_arithmetic(fps, target_fps, clock):
    num_clips, apart = 40, 7
    num_frames = num_clips * apart
    seconds = np.arange(num_frames) / fps
    if clock is not None:
        seconds = np.round(seconds * clock) / clock
    timing = {"num_frames": 8, "stride": 2, "target_fps": target_fps}
    windows = place(seconds, num_frames / fps, every=apart / fps, fps=fps, **timing)
    clips = sampling.test_clips(num_frames, num_clips=num_clips, spacing="nonlocal", past_end="last", fps=fps, **timing)
    span = 8 * 2 * (Fraction(fps / target_fps).limit_denominator(100_000) if target_fps else 1)
    whole = [clip for j, clip in enumerate(clips) if j * apart + span <= num_frames + Fraction(1, 4)]
    assert len(whole) > 17 or span > num_frames
    assert windows.indices_WT.tolist() == np.array(whole, dtype=np.int64).reshape(-1, 8).tolist()
    assert windows.seconds == pytest.approx(float(span) / fps, rel=1e-6)
    np.testing.assert_allclose(
        windows.middles_W, np.arange(len(whole)) * apart / fps + windows.seconds / 2, rtol=1e-12, atol=1e-12
    )
    assert windows.gaps == ()


def test_windows_are_whole_and_their_times_are_middles():
    windows = place(np.arange(20) / 10, every=0.5, fps=10.0)  # windows of 0.8 s in 2 s
    np.testing.assert_allclose(windows.middles_W, [0.4, 0.9, 1.4])
    assert windows.indices_WT.tolist() == [[0, 2, 4, 6], [5, 7, 9, 11], [10, 12, 14, 16]]
    assert windows.spans == ((0, 3, 2.0),)


def test_a_drawn_variable_rate_has_the_frames_shown_at_each_time():
    rng = np.random.default_rng(0)
    for _ in range(8):
        seconds = np.cumsum(rng.choice([20, 40, 80], size=300)) / 1000
        seconds -= seconds[0]
        end = seconds[-1] + 0.04
        fps = 299 / seconds[-1]
        every = float(rng.uniform(0.05, 0.5))
        windows = place(seconds, end, every=every, fps=fps, num_frames=8)
        assert windows.seconds == pytest.approx(16 / fps)
        count = 0
        while count * every + windows.seconds <= end:
            for frame in range(8):
                time = count * every + frame * windows.seconds / 8 + 0.001  # the clock has milliseconds
                shown = max(i for i in range(300) if seconds[i] <= time)
                assert windows.indices_WT[count, frame] == shown
            count += 1
        assert 0 <= len(windows.middles_W) - count <= 1  # one may miss a quarter of a frame's time
        assert windows.gaps == ()


def test_gaps_are_listed_and_no_window_lies_across_one():
    # 2 s at 10 fps, a gap of 3 s, 2 s, a step of 0.3 s, which is less than half a window, 2 s; the last frame stands.
    steps = [0.1] * 20 + [3.1] + [0.1] * 19 + [0.3] + [0.1] * 19 + [2.0]
    seconds = np.concatenate([[0], np.cumsum(steps)])
    windows = place(seconds[:-1], seconds[-1], every=0.25, fps=6.3)
    assert windows.seconds == pytest.approx(0.8, rel=0.04)  # the header's rate counts the gap
    np.testing.assert_allclose(windows.gaps, [(2.1, 5.1), (9.3, 11.2)], atol=0.02)
    assert [span[:2] for span in windows.spans] == [(0, 6), (6, 20)]
    np.testing.assert_allclose([span[2] for span in windows.spans], [2.1, 9.3], atol=0.02)
    half = windows.seconds / 2
    for middle, row in zip(windows.middles_W, windows.indices_WT, strict=True):
        assert not any(middle - half < b - 0.01 and middle + half > a + 0.03 for a, b in windows.gaps)
        assert np.abs(seconds[row] - (middle - half + np.arange(4) * half / 2)).max() <= 0.4
    np.testing.assert_allclose(windows.middles_W[[0, 6]] - half, [0, seconds[21]], atol=1e-9)


@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_a_video_shorter_than_a_window_has_none(num_frames):
    windows = place(np.arange(num_frames) / 25, every=0.1)
    assert windows.indices_WT.shape == (0, 4)
    assert (len(windows.middles_W), windows.spans, windows.gaps) == (0, (), ())
    assert windows.seconds == pytest.approx(8 / 25)


def test_a_video_as_long_as_a_window_has_one():
    windows = place(np.round(np.arange(8) / 29.97, 3), 8 / 29.97 - 0.0009, every=10, fps=29.97)
    assert windows.indices_WT.tolist() == [[0, 2, 4, 6]]


@pytest.mark.parametrize("fps", [0.01, 1e-300])
def test_more_windows_than_memory_holds_are_refused(fps):
    with pytest.raises(
        SettingError, match=r"every_seconds \(--every\) must give at most 1,000,000 windows a video, got"
    ):
        place(np.arange(30) / fps, every=0.001, fps=fps)


def test_slow_videos_have_windows_at_faster_rates():
    windows = place(np.arange(30) / 2, every=1.0, fps=2.0, target_fps=25.0)  # windows of 0.32 s
    assert windows.gaps == ()
    assert windows.indices_WT[:3].tolist() == [[0] * 4, [2] * 4, [4] * 4]
