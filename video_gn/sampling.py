"""Chooses the frames of a clip: index arithmetic alone, without a decoder.

Letters: N frames of the video (or of its segment), T frames of a clip, S stride, K clips.

    T = 4, S = 2:  f x f x f x f      span (T - 1) S + 1 = 7, period T S = 8

All functions return int64 indices in [0, N), counted from the first of the N frames given;
a caller that cuts a segment out of a video adds the segment's first frame.

Resampling: with `target_fps`, neighbouring frames of a clip stand s = S * fps / target_fps
frames of the video apart, and frame t of a clip that starts at frame a is floor(a + t s). The ratio
fps / target_fps is taken as the nearest fraction with a denominator up to 100,000 and the floor is
exact, so that 30000/1001 or 59.94 fps never lose a frame to rounding. Without `target_fps`, or with
fps == target_fps, s is S itself.
"""

# ruff: noqa: PT028  `test_clips` is no test, whatever its name looks like.

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from video_gn.checks import check_choice, check_integer

Indices = npt.NDArray[np.int64]

# fps is the float of a fraction such as 30000/1001, and 1001 and its small multiples are the largest
# denominators in use. At 1/100,000 a clip of 300 frames moves by less than 0.002 of a frame.
_MAX_DENOMINATOR = 100_000


def train_clip(
    video_frames: int,
    *,
    num_frames: int,
    stride: int = 1,
    start: float | None = None,
    rng: np.random.Generator | None = None,
    past_end: str = "loop",
    fps: float | None = None,
    target_fps: float | None = None,
) -> Indices:
    """One random clip.

    The start is a uniform integer in [0, N - T S], both ends included, and 0 where N < T S. It is made
    from one number in [0, 1), so the same draw gives the same relative place when N turns out smaller.

    Args:
        video_frames: N, at least 1.
        num_frames: T, at least 1.
        stride: S, at least 1.
        start: Start of the clip, in [0, 1): 0 is the first possible start, just below 1 the last.
        rng: Generator that draws `start`, once; give one of the two.
        past_end: "loop" takes index mod N, "last" repeats frame N - 1.
        fps: Frame rate of the video; needed with `target_fps`, else unused.
        target_fps: Frame rate that `stride` counts in; None takes the video's own frames.

    Returns:
        int64 (T,).

    Raises:
        ValueError: for a number out of its range, an unknown `past_end`, `target_fps` without `fps`,
            or unless exactly one of `start` and `rng` is given.
        TypeError: for a count that is no integer, or an `rng` that is no numpy Generator.
    Source: the released code of Non-local Neural Networks, customized_video_io.cc (random start in
        [0, N - T S], index mod N).
    """
    video_frames, num_frames, step = _check(video_frames, num_frames, stride, fps, target_fps)
    if (start is None) == (rng is None):
        raise ValueError(f"exactly one of start and rng must be given, got start={start!r}, rng={rng!r}")
    if rng is not None:
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng must be a numpy Generator, got {rng!r}. Use numpy.random.default_rng(seed).")
        start = float(rng.random())
    if start is None or not 0 <= start < 1:
        raise ValueError(f"start must be in [0, 1), got {start!r}")
    last_start = max(math.floor(video_frames - num_frames * step), 0)
    # min: the product of a start just below 1 may round up to the next integer.
    first = min(math.floor(start * (last_start + 1)), last_start)
    return _bound(_clips([Fraction(first)], step, num_frames)[0], video_frames, past_end)


def test_clips(
    video_frames: int,
    *,
    num_clips: int,
    num_frames: int,
    stride: int = 1,
    spacing: str = "nonlocal",
    past_end: str = "loop",
    fps: float | None = None,
    target_fps: float | None = None,
) -> Indices:
    """Clips at regular intervals, for a test that averages their scores.

    | spacing | start of clip j | frames apart |
    |---|---|---|
    | "nonlocal" | int(N / K * j): the last clip may run past the end | s |
    | "uniform" | round(j * max(N - ((T - 1) s + 1), 0) / (K - 1)), half to even; K = 1: half of it, floored | s |
    | "slowfast" | max(N - T s, 0) * j / K, not rounded | (T s - 1) / (T - 1) |

    "slowfast" is SlowFast's: its linspace stretches a clip from first to last frame over T s frames,
    so that 8 frames at stride 8 are 0, 9, 18, ..., 63 and not 0, 8, ..., 56. The position of a frame
    is floored; SlowFast itself clamps at the end (`past_end="last"`) and resamples to 30 fps
    (`target_fps=30`).

    Args:
        video_frames: N, at least 1.
        num_clips: K, at least 1.
        num_frames: T, at least 1.
        stride: S, at least 1.
        spacing: Name of the rule for the starts, see the table.
        past_end: "loop" takes index mod N, "last" repeats frame N - 1 (mmaction2's "repeat_last"
            repeats the last frame of the clip's own grid instead).
        fps: Frame rate of the video; needed with `target_fps`, else unused.
        target_fps: Frame rate that `stride` counts in; None takes the video's own frames.

    Returns:
        int64 (K, T), clips in the order of their starts.

    Raises:
        ValueError: for a number out of its range, an unknown `spacing` or `past_end`, or `target_fps`
            without `fps`.
        TypeError: for a count that is no integer.
    Source: "nonlocal": customized_video_io.cc of Non-local Neural Networks' code; "uniform": SampleFrames
        in test mode of mmaction2 1.x; "slowfast": get_start_end_idx and temporal_sampling in SlowFast's
        decoder.py, for a video that is decoded as a whole (its decoding of a part begins at the next
        whole frame instead of the one before).
    """
    video_frames, num_frames, step = _check(video_frames, num_frames, stride, fps, target_fps)
    num_clips = check_integer("num_clips", num_clips)
    check_choice("spacing", spacing, SPACINGS)
    starts, step = SPACINGS[spacing](video_frames, num_clips, num_frames, step)
    return _bound(_clips(starts, step, num_frames), video_frames, past_end)


def center_clip(
    video_frames: int,
    *,
    num_frames: int,
    stride: int = 1,
    past_end: str = "loop",
    fps: float | None = None,
    target_fps: float | None = None,
) -> Indices:
    """The clip in the middle of the video, for validation; arguments and errors as `test_clips`.

    Returns:
        int64 (T,), from frame floor(max(N - ((T - 1) s + 1), 0) / 2).

    Source: SampleFrames of mmaction2 1.x with one clip in test mode.
    """
    return test_clips(
        video_frames,
        num_clips=1,
        num_frames=num_frames,
        stride=stride,
        spacing="uniform",
        past_end=past_end,
        fps=fps,
        target_fps=target_fps,
    )[0]


def segment_frames(
    frame_seconds: npt.NDArray[np.floating[Any]], start_seconds: float, end_seconds: float
) -> tuple[int, int]:
    """Frames whose time lies in [start_seconds, end_seconds).

    Args:
        frame_seconds: float (N,), the time of each frame, ascending.
        start_seconds: included.
        end_seconds: excluded; infinity takes the rest.

    Returns:
        (first, stop), half-open, with first < stop.

    Raises:
        ValueError: for times that do not ascend, a segment that ends before it starts, or one that
            holds no frame.
    """
    seconds = np.asarray(frame_seconds, dtype=np.float64)
    if seconds.ndim != 1 or len(seconds) == 0 or np.isnan(seconds).any() or not (np.diff(seconds) >= 0).all():
        brief = np.array2string(seconds, threshold=6)
        raise ValueError(f"frame_seconds must be ascending times of at least one frame, got {brief}")
    if not start_seconds < end_seconds:
        raise ValueError(f"start_seconds must be below end_seconds, got {start_seconds!r} and {end_seconds!r}")
    first, stop = (int(np.searchsorted(seconds, t, side="left")) for t in (start_seconds, end_seconds))
    if first == stop:
        raise ValueError(
            f"the segment from {start_seconds!r} to {end_seconds!r} seconds must hold a frame, "
            f"got none of {len(seconds)} frames between {float(seconds[0])!r} and {float(seconds[-1])!r} seconds"
        )
    return first, stop


# ---- where the clips of a test start: (N, K, T, s) -> starts, frames apart -------------------------

_Starts = tuple[list[Fraction], Fraction]


def _nonlocal_starts(video_frames: int, num_clips: int, num_frames: int, step: Fraction) -> _Starts:
    # A quotient first, then a product, as the source has it. It does so in float32, we in float64: for
    # K = 10 both are floor(N j / K) for every N up to 20,000; for K = 20 or 30 rounding may cost either
    # a frame (N = 84, K = 20, j = 15: 63 exactly, 62 in both).
    gap = video_frames / num_clips
    return [Fraction(int(gap * j) % video_frames) for j in range(num_clips)], step


def _uniform_starts(video_frames: int, num_clips: int, num_frames: int, step: Fraction) -> _Starts:
    last_start = max(video_frames - ((num_frames - 1) * step + 1), Fraction(0))
    if num_clips == 1:
        return [Fraction(last_start // 2)], step
    # The source multiplies j by the float quotient and calls np.round, which is half to even.
    between = float(last_start) / (num_clips - 1)
    return [Fraction(int(s)) for s in np.round(np.arange(num_clips) * between)], step


def _slowfast_starts(video_frames: int, num_clips: int, num_frames: int, step: Fraction) -> _Starts:
    last_start = max(video_frames - num_frames * step, Fraction(0))
    starts = [last_start * j / num_clips for j in range(num_clips)]
    # At a rate above S times the video's own, T s may be below 1: the clip repeats its first frame.
    apart = max((num_frames * step - 1) / (num_frames - 1), Fraction(0)) if num_frames > 1 else step
    return starts, apart


SPACINGS: dict[str, Callable[[int, int, int, Fraction], _Starts]] = {
    "nonlocal": _nonlocal_starts,
    "uniform": _uniform_starts,
    "slowfast": _slowfast_starts,
}

_PAST_END: dict[str, Callable[[Indices, int], Indices]] = {
    "loop": lambda indices, video_frames: indices % video_frames,
    "last": lambda indices, video_frames: np.minimum(indices, video_frames - 1),
}


def _clips(starts: list[Fraction], step: Fraction, num_frames: int) -> Indices:
    """floor(start + t * step), exactly: int64 (K, T)."""
    rows = []
    for start in starts:
        denominator = math.lcm(start.denominator, step.denominator)
        a, b = int(start * denominator), int(step * denominator)
        rows.append([(a + t * b) // denominator for t in range(num_frames)])
    return np.array(rows, dtype=np.int64)


def _bound(indices: Indices, video_frames: int, past_end: str) -> Indices:
    check_choice("past_end", past_end, _PAST_END)
    return _PAST_END[past_end](indices, video_frames)


# ---- arguments ---------------------------------------------------------------------------------


def _check(
    video_frames: int, num_frames: int, stride: int, fps: float | None, target_fps: float | None
) -> tuple[int, int, Fraction]:
    """N, T and s, checked."""
    video_frames = check_integer("video_frames", video_frames)
    num_frames = check_integer("num_frames", num_frames)
    stride = check_integer("stride", stride)
    if target_fps is None:
        return video_frames, num_frames, Fraction(stride)
    if fps is None:
        raise ValueError(f"fps must be given with target_fps={target_fps!r}, got None. Pass the video's own rate.")
    for name, value in (("fps", fps), ("target_fps", target_fps)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value!r}")
    ratio = Fraction(float(fps) / float(target_fps)).limit_denominator(_MAX_DENOMINATOR)
    return video_frames, num_frames, stride * ratio
