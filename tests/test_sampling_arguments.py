"""Segments of a video, and a caller's mistakes in choosing frames."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_gn import sampling

# ---- segments ----------------------------------------------------------------------------------

TIMES = np.array([0.0, 0.5, 1.0, 1.5, 2.0])


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.0, 1.0, (0, 2)),  # the end is excluded
        (0.5, 1.5, (1, 3)),
        (0.1, 1.6, (1, 4)),
        (0.0, math.inf, (0, 5)),
        (-1.0, 0.1, (0, 1)),
        (2.0, 3.0, (4, 5)),
    ],
)
def test_segment_by_hand(start, end, expected):
    assert sampling.segment_frames(TIMES, start, end) == expected
    assert all(type(i) is int for i in sampling.segment_frames(TIMES, start, end))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30).map(sorted), st.floats(0, 100), st.floats(0, 100))
def test_segment_against_a_loop(times, start, end):
    expected = [i for i, t in enumerate(times) if start <= t < end]
    if expected:
        first, stop = sampling.segment_frames(np.array(times), start, end)
        assert list(range(first, stop)) == expected
    else:
        with pytest.raises(ValueError):
            sampling.segment_frames(np.array(times), start, end)


@pytest.mark.parametrize(
    ("times", "start", "end", "message"),
    [
        (TIMES, 0.6, 0.9, "must hold a frame, got none of 5 frames between 0.0 and 2.0 seconds"),
        (TIMES, 2.5, math.inf, "must hold a frame"),
        (TIMES, 1.0, 1.0, "start_seconds must be below end_seconds, got 1.0 and 1.0"),
        (TIMES, 2.0, 1.0, "start_seconds must be below end_seconds"),
        (TIMES, math.nan, 1.0, "start_seconds must be below end_seconds, got nan"),
        (TIMES[::-1], 0.0, 1.0, "frame_seconds must be ascending"),
        (np.array([0.0, math.nan, 1.0]), 0.0, 1.0, "frame_seconds must be ascending"),
        (np.array([]), 0.0, 1.0, "frame_seconds must be ascending times of at least one frame"),
        (TIMES[None], 0.0, 1.0, "frame_seconds must be ascending"),
    ],
)
def test_bad_segments(times, start, end, message):
    with pytest.raises(ValueError, match=message):
        sampling.segment_frames(times, start, end)


# ---- callers' mistakes -------------------------------------------------------------------------

GOOD = {"video_frames": 10, "num_clips": 2, "num_frames": 4, "stride": 2}


@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize("value", [0, -1])
def test_counts_start_at_one(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        sampling.test_clips(**{**GOOD, name: value})


@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize("value", [2.0, "2", True, None])
def test_counts_are_integers(name, value):
    with pytest.raises(TypeError, match=f"{name} must be an integer, got {value!r}"):
        sampling.test_clips(**{**GOOD, name: value})


def test_counts_may_be_numpy_integers():
    got = sampling.test_clips(**{name: np.int64(value) for name, value in GOOD.items()})
    assert got.tolist() == sampling.test_clips(**GOOD).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": "even"}, r"spacing must be one of \['nonlocal', 'slowfast', 'uniform'\], got 'even'"),
        ({"past_end": "stop"}, r"past_end must be one of \['last', 'loop'\], got 'stop'"),
        ({"target_fps": 30}, "fps must be given with target_fps=30, got None"),
        ({"target_fps": 30, "fps": 0.0}, "fps must be above 0 and finite, got 0.0"),
        ({"target_fps": 30, "fps": math.nan}, "fps must be above 0 and finite, got nan"),
        ({"target_fps": 30, "fps": math.inf}, "fps must be above 0 and finite, got inf"),
        ({"target_fps": -1, "fps": 30}, "target_fps must be above 0 and finite, got -1"),
        ({"target_fps": math.nan, "fps": 30}, "target_fps must be above 0 and finite, got nan"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        sampling.test_clips(**GOOD, **changes)


@pytest.mark.parametrize("start", [-0.1, 1.0, math.nan, math.inf])
def test_bad_starts(start):
    with pytest.raises(ValueError, match=r"start must be in \[0, 1\), got"):
        sampling.train_clip(10, num_frames=4, start=start)


def test_start_and_generator():
    with pytest.raises(ValueError, match="exactly one of start and rng must be given, got start=None, rng=None"):
        sampling.train_clip(10, num_frames=4)
    with pytest.raises(ValueError, match=r"exactly one of start and rng must be given, got start=0.5"):
        sampling.train_clip(10, num_frames=4, start=0.5, rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match="rng must be a numpy Generator, got RandomState"):
        sampling.train_clip(10, num_frames=4, rng=np.random.RandomState(0))


def test_it_needs_no_torch():
    code = "import sys, video_gn.sampling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
