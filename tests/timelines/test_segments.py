"""Segments are the best of all labellings that are long enough."""

import itertools

import numpy as np
import pytest

from video_gn.errors import SettingError
from video_gn.timelines.segments import TimelineConfig, best_segments, find_segments, smooth_scores
from video_gn.timelines.windows import Windows


def every_labelling(scores_WL, bounds, shortest_L):
    """The highest sum over all labellings whose runs last long enough for their label, or are all of it."""
    num_windows, num_labels = scores_WL.shape
    best = -np.inf
    for labels in itertools.product(range(num_labels), repeat=num_windows):
        runs = [list(run) for _, run in itertools.groupby(range(num_windows), key=labels.__getitem__)]
        spare = [bounds[run[-1] + 1] - bounds[run[0]] - shortest_L[labels[run[0]]] for run in runs]
        if len(runs) == 1 or min(spare) >= -1e-9:
            best = max(best, sum(scores_WL[w, label] for w, label in enumerate(labels)))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_no_labelling_is_better(seed):
    rng = np.random.default_rng(seed)
    num_windows, num_labels = int(rng.integers(1, 8)), int(rng.integers(1, 4))
    scores_WL = rng.random((num_windows, num_labels))
    bounds = np.concatenate([[0], np.cumsum(rng.uniform(0.2, 1.0, num_windows))])
    shortest_L = rng.uniform(0, 3, num_labels) if seed % 2 else np.full(num_labels, rng.uniform(0, 3))
    segments = best_segments(scores_WL, bounds, shortest_L)
    assert [s[0] for s in segments] == [0, *(s[1] for s in segments[:-1])]
    assert segments[-1][1] == num_windows
    assert all(a[2] != b[2] for a, b in itertools.pairwise(segments))
    if len(segments) > 1:
        assert min(bounds[stop] - bounds[first] - shortest_L[label] for first, stop, label in segments) >= -1e-9
    total = sum(scores_WL[first:stop, label].sum() for first, stop, label in segments)
    assert total == pytest.approx(every_labelling(scores_WL, bounds, shortest_L), abs=1e-9)


def test_smoothing_is_a_mean_of_the_windows_within_reach():
    scores_WY = np.random.default_rng(0).random((9, 40)).astype(np.float32)
    for reach in (0, 1, 3, 20):
        naive = [scores_WY[max(0, w - reach) : w + reach + 1].astype(np.float64).mean(0) for w in range(9)]
        np.testing.assert_allclose(smooth_scores(scores_WY, reach), naive, atol=1e-7)
    assert smooth_scores(scores_WY[:0], 1).shape == (0, 40)


def windows_of(count, *, every=0.5, seconds=2.0, spans=None):
    middles = np.arange(count) * every + seconds / 2
    end = float(middles[-1]) + seconds / 2 + 0.3
    return Windows(seconds, middles, np.zeros((count, 1), dtype=np.int64), spans or ((0, count, end),), ())


def test_segments_have_bounds_between_windows_and_mean_scores():
    scores_WY = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 3, dtype=np.float32)
    found = find_segments(scores_WY, windows_of(7), ["a", "b"], TimelineConfig(0.5, smooth_seconds=0))
    assert found == [
        {"label": "a", "start_seconds": 0.0, "end_seconds": 2.75, "score": 0.9},
        {"label": "b", "start_seconds": 2.75, "end_seconds": 5.0, "score": 0.6},
    ]


def test_an_unsure_segment_tells_how_sure_the_best_class_is():
    scores_WY = np.array([[0.9, 0.1]] * 4 + [[0.45, 0.35], [0.35, 0.45]] * 2, dtype=np.float32)
    config = TimelineConfig(0.5, smooth_seconds=0)
    found = find_segments(scores_WY, windows_of(8), [], config)
    assert [(s["label"], s["score"]) for s in found] == [("0", 0.9), ("unsure", 0.45)]
    never = TimelineConfig(0.5, smooth_seconds=0, unsure=0, min_seconds=0)
    assert [s["label"] for s in find_segments(scores_WY, windows_of(8), [], never)] == ["0", "1", "0", "1"]


def test_a_change_of_label_is_not_unsure():
    # A window that sees both labels gives each its share; the best of these falls to 0.45.
    share = np.clip((np.arange(24) - 8) / 8, 0, 1)
    scores_WY = 0.9 * np.stack([1 - share, share], axis=1).astype(np.float32)
    found = find_segments(scores_WY, windows_of(24, every=0.25), ["a", "b"], TimelineConfig(0.25, min_seconds=0))
    assert [s["label"] for s in found] == ["a", "b"]
    assert found[1]["start_seconds"] == pytest.approx(1.0 + 12 * 0.25, abs=0.25)


def test_a_short_segment_is_no_segment_and_smoothing_takes_neighbours():
    scores_WY = np.array([[1, 0]] * 4 + [[0, 1]] + [[1, 0]] * 4, dtype=np.float32)
    plain = TimelineConfig(0.5, smooth_seconds=0, min_seconds=0)
    assert len(find_segments(scores_WY, windows_of(9), ["a", "b"], plain)) == 3
    smoothed = (TimelineConfig(0.5, smooth_seconds=seconds, min_seconds=0) for seconds in (1.0, 1e300))
    for config in (TimelineConfig(0.5, smooth_seconds=0), *smoothed):
        (segment,) = find_segments(scores_WY, windows_of(9), ["a", "b"], config)
        assert (segment["label"], segment["start_seconds"], segment["end_seconds"]) == ("a", 0.0, 6.0)


def test_parts_between_gaps_are_labelled_by_themselves():
    scores_WY = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    windows = Windows(1.0, np.array([0.5, 9.5, 10.0]), np.zeros((3, 1)), ((0, 1, 1.2), (1, 3, 10.45)), ((1.2, 9.0),))
    found = find_segments(scores_WY, windows, ["a", "b"], TimelineConfig(0.5, min_seconds=5))
    spans = [(s["label"], s["start_seconds"], s["end_seconds"]) for s in found]
    assert spans == [("a", 0.0, 1.0), ("b", 9.0, 10.45)]  # a window may end a bit late, a segment does not


def test_two_hours_of_400_classes():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 400, 144), 100)
    scores_WY = rng.random((14_400, 400), dtype=np.float32) * 0.01
    scores_WY[np.arange(14_400), truth] = 0.9
    segments = best_segments(scores_WY, np.arange(14_401) * 0.5, np.full(400, 1.0))
    changes = np.flatnonzero(np.diff(truth)) + 1
    assert [first for first, _, _ in segments[1:]] == changes.tolist()
    assert [label for _, _, label in segments] == truth[[0, *changes]].tolist()


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("every_seconds", 0.0009, "at least 0.001"),
        ("every_seconds", float("nan"), "at least 0.001"),
        ("every_seconds", None, "at least 0.001"),
        ("unsure", "0.5", "a score from 0 to 1"),
        ("smooth_seconds", -1.0, "at least 0"),
        ("min_seconds", float("inf"), "at least 0"),
        ("unsure", 1.5, "a score from 0 to 1"),
    ],
)
def test_numbers_out_of_range(name, value, rule):
    with pytest.raises(SettingError, match=rf"{name} \(--\w+\) must be {rule}, got"):
        TimelineConfig(**{"every_seconds": 0.5, name: value})
