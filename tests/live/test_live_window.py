"""Which frames make the newest window, on lists written by hand."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from video_gn.live.window import Newest
from video_gn.timelines.windows import place_windows


def feed(newest, times, *, first=0):
    """Add frames whose crops show their number; the numbers of those that were cropped."""
    cropped = []

    def crop_of(number):
        def crop():
            cropped.append(number)
            return torch.full((1, 1, 1, 3), number, dtype=torch.uint8)

        return crop

    for number, seconds in enumerate(times, first):
        newest.add(seconds, received=100 + seconds, crop=crop_of(number))
    return cropped


def numbers(window):
    return window.frames_PTCHW[0, :, 0, 0, 0].tolist()


def newest_of(times, rate, *, target_fps=None, **more):
    newest = Newest(num_frames=4, stride=2, **more)
    newest.start(rate, target_fps)
    cropped = feed(newest, times)
    return newest, cropped


def at(fps, count, start=0.0):
    return [start + n / fps for n in range(count)]


def test_every_stride_th_frame_and_no_other_is_cropped():
    newest, cropped = newest_of(at(25, 9, start=7.0), 25)
    assert cropped == [0, 2, 4, 6, 8]
    window = newest.next(1)
    assert numbers(window) == [2, 4, 6, 8]
    assert (window.start_seconds, window.end_seconds) == pytest.approx((7.08, 7.40))
    assert window.received == 100 + 7.32
    assert window.counts == {"frames_read": 9, "frames_skipped": 2, "frames_damaged": 0}


@pytest.mark.parametrize(
    ("times", "rate", "expected"),
    [
        (at(30000 / 1001, 8), 29.97, [0, 2, 4, 6]),
        ([round(t, 3) for t in at(30, 8)], 30.0, [0, 2, 4, 6]),  # milliseconds
        ([0, 0.034, 0.060, 0.108, 0.128, 0.160, 0.209], 30.0, [0, 2, 4, 6]),  # jitter below half a frame
        (at(60, 14), 60.0, [0, 3, 7, 11]),  # a step begins half a frame of the network's early
        (at(15, 4), 15.0, [0, 1, 2, 3]),
        (at(10, 3), 10.0, [0, 1, 1, 2]),  # the step at 0.133 s has no frame of its own
        ([0, 1 / 30, 5 / 30, 6 / 30], 30.0, [0, 0, 2, 3]),  # three frames were lost
    ],
)
def test_frames_are_chosen_by_time(times, rate, expected):
    newest, _ = newest_of(times, rate, target_fps=30.0)
    assert numbers(newest.next(1)) == expected


@pytest.mark.parametrize("fps", [10.0, 30000 / 1001])
def test_frames_are_those_of_a_timeline(fps):
    times = np.array(at(fps, 48))
    placed = place_windows(times, 48 / fps, every_seconds=2 / fps, num_frames=4, stride=2, fps=fps)
    newest = Newest(num_frames=4, stride=2, every_seconds=0.0)
    newest.start(fps)
    found = []
    for number, seconds in enumerate(times.tolist()):
        feed(newest, [seconds], first=number)
        with contextlib.suppress(TimeoutError):
            found.append(newest.next(0))
    assert [numbers(window) for window in found] == placed.indices_WT.tolist()
    assert [(w.start_seconds + w.end_seconds) / 2 for w in found] == pytest.approx(placed.middles_W.tolist())


def test_windows_are_apart():
    newest, _ = newest_of(at(10, 8), 10)
    assert numbers(newest.next(1)) == [0, 2, 4, 6]
    feed(newest, at(10, 6, start=0.8), first=8)  # 8 to 13: one frame fewer than a window
    with pytest.raises(TimeoutError):
        newest.next(0)
    feed(newest, at(10, 1, start=1.4), first=14)
    window = newest.next(1)
    assert numbers(window) == [8, 10, 12, 14]
    assert window.counts == {"frames_read": 15, "frames_skipped": 0, "frames_damaged": 0}


def test_windows_as_often_as_a_step():
    newest, _ = newest_of(at(10, 7), 10, every_seconds=0.0)
    assert numbers(newest.next(1)) == [0, 2, 4, 6]
    with pytest.raises(TimeoutError):
        newest.next(0)
    feed(newest, at(10, 2, start=0.7), first=7)
    assert numbers(newest.next(1)) == [2, 4, 6, 8]


def test_only_the_newest_window_is_kept():
    newest, _ = newest_of(at(10, 7), 10)
    newest.next(1)
    feed(newest, at(10, 30, start=0.7), first=7)  # to frame 36, while a slow network scores the first window
    window = newest.next(1)
    assert numbers(window) == [30, 32, 34, 36]
    assert window.counts["frames_skipped"] == 22  # 8 to 29; 7 is the second frame of a step of the first window


def test_the_end_is_a_window():
    newest, _ = newest_of(at(10, 7), 10)
    assert numbers(newest.next(1)) == [0, 2, 4, 6]
    feed(newest, at(10, 2, start=0.7), first=7)
    newest.finish()
    assert numbers(newest.next(1)) == [2, 4, 6, 8]
    assert newest.next(1) is None
    assert newest.close() == {"frames_read": 9, "frames_skipped": 0, "frames_damaged": 0}


def test_too_short():
    newest, _ = newest_of(at(10, 5), 10)
    newest.finish()
    assert newest.next(1) is None
    assert newest.close()["frames_skipped"] == 5


@pytest.mark.parametrize("then", [10.0, 0.0])
def test_no_window_across_a_gap(then):
    newest, _ = newest_of(at(10, 7, start=3.0), 10)
    assert numbers(newest.next(1)) == [0, 2, 4, 6]
    feed(newest, at(10, 6, start=then), first=7)
    assert newest.next(1) == {"event": "gap", "from_seconds": 3.6, "to_seconds": then}
    with pytest.raises(TimeoutError):
        newest.next(0)
    feed(newest, at(10, 1, start=then + 0.6), first=13)
    window = newest.next(1)
    assert numbers(window) == [7, 9, 11, 13] and window.start_seconds == then


def test_a_slow_stream_has_no_gaps():
    newest, _ = newest_of(at(0.5, 7), 0.5)
    assert numbers(newest.next(1)) == [0, 2, 4, 6]


def test_another_size_begins_anew():
    newest, _ = newest_of(at(10, 3), 10)
    for number in range(4, 12):
        newest.add(number / 10, 0.0, lambda: torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
    newest.finish()
    window = newest.next(1)
    assert window.frames_PTCHW.shape == (1, 4, 3, 2, 2) and window.start_seconds == pytest.approx(0.4)


def test_crops_lie_beside_each_other():
    newest = Newest(num_frames=2, stride=1)
    newest.start(10)
    for number in range(2):
        newest.add(number / 10, 0.0, lambda: torch.arange(3).view(3, 1, 1, 1).expand(3, 4, 5, 3).byte())
    frames_PTCHW = newest.next(1).frames_PTCHW
    assert frames_PTCHW.shape == (3, 2, 3, 4, 5)
    assert frames_PTCHW[:, 0, 0, 0, 0].tolist() == [0, 1, 2]


def test_events_errors_and_silence():
    newest = Newest(num_frames=2, stride=1)
    with pytest.raises(TimeoutError):
        newest.next(0)
    newest.tell("lost", reason="it ended")
    newest.finish(ZeroDivisionError("x"))
    assert newest.next(1) == {"event": "lost", "reason": "it ended"}
    with pytest.raises(ZeroDivisionError):
        newest.next(1)
