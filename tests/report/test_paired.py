import math
from fractions import Fraction

import numpy as np
import pytest
from fake_run import predictions_of
from hypothesis import given
from hypothesis import strategies as st

from video_gn.errors import RunError
from video_gn.report import paired


def test_mcnemar_by_hand():
    # 2 * (1 + 8) / 2^8; 2 * (1 + 10 + 45) / 2^10; as many on both sides, and none at all
    assert paired.mcnemar(1, 7) == paired.mcnemar(7, 1) == 18 / 256
    assert paired.mcnemar(2, 8) == 112 / 1024
    assert paired.mcnemar(5, 5) == paired.mcnemar(0, 0) == 1.0
    assert paired.mcnemar(0, 6) == 2 / 64
    assert paired.mcnemar(0, 3000) == 0.0  # below the least float


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_twice_the_binomial_tail(first, other):
    n = first + other
    tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(min(first, other) + 1))
    assert paired.mcnemar(first, other) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-12)


def test_holm_by_hand():
    # In order 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; none below one before it.
    assert paired.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert paired.holm([0.5, 0.9]) == [1.0, 1.0]
    assert paired.holm([0.2]) == [0.2] and paired.holm([]) == []


def test_the_interval_of_a_difference_by_hand():
    """Wilson intervals of 50/100 and 60/100, and phi = (30*20 - 20*30 = 0) -> 0: the distances add as squares."""
    low_1, high_1, low_2, high_2 = 0.403832, 0.596168, 0.502003, 0.690600
    expected = (
        0.1 - math.hypot(0.6 - low_2, high_1 - 0.5),
        0.1 + math.hypot(high_2 - 0.6, 0.5 - low_1),
    )
    assert paired.difference_interval(30, 20, 30, 20) == pytest.approx(expected, abs=1e-5)
    low, high = paired.difference_interval(10, 0, 0, 0)
    assert -0.4 < low < 0 < high < 0.4, "ten videos that both have right leave the difference open"
    low, high = paired.difference_interval(0, 0, 7, 0)
    assert 0 < low < high <= 1


@pytest.mark.parametrize("counts", [(700, 60, 100, 140), (150, 80, 30, 240), (40, 160, 150, 50)])
def test_the_interval_of_a_difference_is_near_that_of_a_bootstrap(counts):
    n = sum(counts)
    draws = np.random.default_rng(0).multinomial(n, np.array(counts) / n, size=40_000)
    bootstrap = np.quantile((draws[:, 2] - draws[:, 1]) / n, [0.025, 0.975])
    # The ends differ by the skew of Wilson's intervals, and by the correction for continuity.
    assert paired.difference_interval(*counts) == pytest.approx(bootstrap, abs=0.1 * np.ptp(bootstrap))


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1)


@given(ROWS, st.randoms(use_true_random=False))
def test_pairs_are_those_of_a_loop(rows, random):
    """Videos of two tests in other orders; the last flag says that only the first has it."""
    labels, preds, other_preds, alone = zip(*rows, strict=True)
    first = predictions_of(labels, preds, num_classes=4)
    order = [place for place in range(len(rows)) if not alone[place]]
    random.shuffle(order)
    if not order:
        return
    other = predictions_of([labels[p] for p in order], [other_preds[p] for p in order], num_classes=4)
    other.videos[:] = [f"{p}.mp4" for p in order]
    found = paired.pair(first, other, ("A", "B"))
    shared = sorted(order)
    assert found.first.tolist() == shared
    assert [order[p] for p in found.other.tolist()] == shared
    a, b = ({p for p in shared if labels[p] == said[p]} for said in (preds, other_preds))
    assert found.counts == (len(a & b), len(a - b), len(b - a), len(set(shared) - a - b))
    assert found.only_first == [f"{p}.mp4" for p in range(len(rows)) if alone[p]] and found.only_other == []
    for row in found.classes:
        mine = {p for p in shared if f"c{labels[p]}" == row.name}
        assert (row.num_videos, row.first_right, row.other_right) == (len(mine), len(a & mine), len(b & mine))
    assert sum(row.num_videos for row in found.classes) == len(shared)
    gained = [row.gained for row in found.classes]
    assert gained == sorted(gained, reverse=True)


def test_segments_of_a_video_are_paired_in_order_and_only_if_both_have_all():
    first, other = predictions_of([0, 1, 0, 1], [0, 0, 0, 0]), predictions_of([0, 1, 0], [0, 1, 1])
    first.videos[:], other.videos[:] = ["a", "a", "b", "b"], ["a", "a", "b"]
    found = paired.pair(first, other, ("A", "B"))
    assert found.first.tolist() == found.other.tolist() == [0, 1]
    assert found.only_first == ["b", "b"] and found.only_other == ["b"]


def test_what_cannot_be_compared_is_refused():
    first, other = predictions_of([0, 1, -1], [0, 0, 0]), predictions_of([0, 0, -1], [0, 0, 0])
    names = ("A", "B")
    with pytest.raises(RunError, match="the same in all runs, got 'c1' in A and 'c0' in B for '1.mp4', and 1 video in"):
        paired.pair(first, other, names)
    other.videos[:] = ["x", "y\x1b", "z"]
    with pytest.raises(
        RunError, match="must have tested the same videos, got none that A and B share: '0.mp4' and 'x'"
    ):
        paired.pair(first, other, names)
    unlabelled = predictions_of([-1, -1], [0, 0])
    with pytest.raises(RunError, match="must have labels to be compared, got none in A and B"):
        paired.pair(unlabelled, unlabelled, names)
    paired.check_classes(first, other, (2, 2), names)
    paired.check_classes(first, other, (None, 7), names)
    with pytest.raises(RunError, match="classes must be the same in all runs, got 2 in A and 3 in B. Compare"):
        paired.check_classes(first, other, (2, 3), names)
    other.classes[:] = ["c0", "other"]
    with pytest.raises(
        RunError, match="got 3 names in A and B, whose networks have 2 classes; 'other' is one of B alone"
    ):
        paired.check_classes(first, other, (2, 2), names)
