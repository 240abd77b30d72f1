import math

import numpy as np
import pytest
from fake_run import predictions_of
from hypothesis import given
from hypothesis import strategies as st

from video_gn.report import analysis


def test_wilson_interval():
    # Figures of Wilson's formula worked by hand with z = 1.96.
    assert analysis.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert analysis.wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-5)
    assert analysis.wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=30), st.floats(0.5, 50))
def test_smooth_is_a_weighted_mean_of_what_came_before(values, window):
    decay = 1 - 1 / max(1, window)
    found = analysis.smooth(np.array(values, dtype=np.float64), window)
    for t in range(len(values)):
        weights = [(decay ** (t - s), values[s]) for s in range(t + 1) if math.isfinite(values[s])]
        total = math.fsum(w for w, _ in weights)
        if total == 0:
            assert math.isnan(found[t]) or window <= 1
        else:
            size = max(abs(v) for _, v in weights)
            # Rounding of at most 30 sums of values of that size.
            assert found[t] == pytest.approx(math.fsum(w * v for w, v in weights) / total, rel=1e-9, abs=1e-12 * size)


@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=60))
def test_counts_are_those_of_naive_loops(rows):
    labels, preds, ranks = (list(column) for column in zip(*rows, strict=True))
    found = predictions_of(labels, preds, ranks, num_classes=7)
    pairs = {}
    for label, pred in zip(labels, preds, strict=True):
        if label >= 0:
            pairs[label, pred] = pairs.get((label, pred), 0) + 1
    assert {(a, b): n for a, b, n in analysis.count_pairs(found)} == pairs

    table = analysis.class_rows(found)
    assert sorted(row.name for row in table) == [f"c{i}" for i in range(7)]
    for row in table:
        number = int(row.name[1:])
        mine = [i for i in range(len(rows)) if labels[i] == number]
        assert row.num_videos == len(mine)
        assert row.num_correct == sum(preds[i] == number for i in mine)
        assert row.num_top5 == sum(ranks[i] > 0 for i in mine)
        assert row.num_predicted == sum(preds[i] == number and labels[i] >= 0 for i in range(len(rows)))
        wrong = {p: n for (a, p), n in pairs.items() if a == number and p != number}
        assert row.num_mistaken == max(wrong.values(), default=0)
        assert (row.mistaken_for == "") == (not wrong)
        assert not wrong or wrong[int(row.mistaken_for[1:])] == row.num_mistaken
    accuracies = [row.accuracy for row in table if row.num_videos]
    assert accuracies == sorted(accuracies)
    assert all(not row.num_videos for row in table[len(accuracies) :])

    confused = analysis.confused_pairs(found, 5)
    expected = sorted((n for (a, b), n in pairs.items() if a != b), reverse=True)[:5]
    assert [pair.count for pair in confused] == expected
    assert all(pairs[pair.label, pair.pred] == pair.count for pair in confused)
    assert all(pair.num_videos == labels.count(pair.label) for pair in confused)


def test_confident_mistakes_come_by_score():
    found = predictions_of([0, 1, -1, 1, 0, 1], [0, 0, 1, 0, 1, 0], scores=[0.99, 0.3, 0.98, 0.8, math.nan, 0.8])
    assert analysis.confident_mistakes(found, 10) == [3, 5, 1, 4]
    assert analysis.confident_mistakes(found, 2) == [3, 5]


def test_natural_order():
    names = ["run10", "Run2", "a", "run1", "²", "10", "9"]
    assert analysis.natural_order(names) == ["9", "10", "a", "run1", "Run2", "run10", "²"]
