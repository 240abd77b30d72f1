import math

import numpy as np
import pytest

from video_gn.evaluation.clip_curve import ClipCurve, spread

NUM_CLIPS, NUM_CROPS = 4, 2


def naive_curve(labels, scores):
    keep = [v for v in range(len(labels)) if labels[v] >= 0]
    views = NUM_CLIPS * NUM_CROPS
    single = np.mean([[scores[v, k].argmax() == labels[v] for k in range(views)] for v in keep])
    accuracies = []
    for number in range(1, NUM_CLIPS + 1):
        chosen = [math.floor((i + 0.5) * NUM_CLIPS / number) for i in range(number)]
        right = 0
        for v in keep:
            total = np.zeros(scores.shape[2])
            for clip in chosen:
                for crop in range(NUM_CROPS):
                    total += scores[v, clip * NUM_CROPS + crop].astype(np.float64)
            right += total.argmax() == labels[v]
        accuracies.append(right / len(keep))
    return single, accuracies


def test_the_curve_is_that_of_a_naive_loop():
    rng = np.random.default_rng(0)
    labels = rng.integers(7, size=23)
    scores = rng.random((23, NUM_CLIPS * NUM_CROPS, 7)).astype(np.float32)
    scores[np.arange(23), :, labels] += 0.4
    labels[[3, 7]] = -1
    curve = ClipCurve(num_clips=NUM_CLIPS, num_crops=NUM_CROPS)
    for scores_KY, label in zip(scores, labels.tolist(), strict=True):
        curve.add(scores_KY, label)
    single, accuracies = naive_curve(labels, scores)
    assert 0 < accuracies[0] < 1
    found = curve.results()
    assert found["num_clips"] == [1, 2, 3, 4]
    assert found["top1"] == pytest.approx(accuracies, abs=1e-12)
    assert found["top1_single_view"] == pytest.approx(single, abs=1e-12)


def test_no_label_gives_no_curve_and_a_tie_is_wrong():
    curve = ClipCurve(num_clips=1, num_crops=1)
    curve.add(np.ones((1, 3), dtype=np.float32), -1)
    assert curve.results() is None
    curve.add(np.full((1, 3), 1 / 3, dtype=np.float32), 0)
    assert curve.results() == {"num_clips": [1], "top1": [0.0], "top1_single_view": 0.0}


def test_a_curve_has_at_most_20_points():
    curve = ClipCurve(num_clips=100, num_crops=1)
    curve.add(np.tile(np.array([0.9, 0.1], dtype=np.float32), (100, 1)), 0)
    counts = curve.results()["num_clips"]
    assert (len(counts), counts[0], counts[-1]) == (20, 1, 100)


def test_spread():
    assert spread(1, 10) == [5]
    assert spread(2, 10) == [2, 7]
    assert spread(3, 10) == [1, 5, 8]
    assert spread(10, 10) == list(range(10))
    assert spread(1, 1) == [0]
