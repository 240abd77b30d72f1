"""A balanced order against counts, and against the endless lists written out."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.data.samplers import epoch_order, occurrences

LABELS = np.array([0] * 12 + [1] * 3 + [4] * 1 + [2] * 6)  # class 3 has none


def shuffled(labels, seed=0):
    return np.random.default_rng(seed).permutation(labels)


def test_each_class_comes_equally_often():
    labels = shuffled(LABELS)
    order = epoch_order(0, 0, labels)
    assert order.dtype == np.int64 and order.shape == labels.shape
    counts = np.bincount(labels[order], minlength=5)
    assert sorted(counts.tolist()) == [0, 5, 5, 6, 6]
    assert counts[3] == 0


def test_equal_classes_give_a_permutation():
    labels = shuffled(np.repeat([0, 1, 2], 7))
    for epoch in range(3):
        assert sorted(epoch_order(5, epoch, labels).tolist()) == list(range(21))


def test_a_function_of_its_arguments():
    labels = shuffled(LABELS)
    a = epoch_order(3, 2, labels)
    np.random.seed(7)
    assert (a == epoch_order(3, 2, labels)).all()
    others = [epoch_order(3, 1, labels), epoch_order(4, 2, labels)]
    assert all((a != other).any() for other in others)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=60),
    st.integers(0, 2**40),
    st.integers(1, 7),
)
def test_balance_within_and_over_epochs(labels, seed, num_epochs):
    labels = np.array(labels)
    total = np.zeros(len(labels), dtype=int)
    for epoch in range(num_epochs):
        order = epoch_order(seed, epoch, labels)
        assert len(order) == len(labels)
        counts = np.bincount(labels[order], minlength=7)[np.unique(labels)]
        assert counts.max() - counts.min() <= 1
        uses = np.bincount(order, minlength=len(labels))
        for label in np.unique(labels):
            of_class = uses[labels == label]
            # Taken across the seam of two shuffles: a record may be the last of one and the first of the next.
            assert of_class.max() - of_class.min() <= 2
        total += uses
    per_class = np.array([total[labels == label].sum() for label in np.unique(labels)])
    assert per_class.max() - per_class.min() <= 1
    for label in np.unique(labels):
        of_class = total[labels == label]
        assert of_class.max() - of_class.min() <= 1


def test_a_large_class_is_seen_whole_over_epochs():
    labels = np.array([0] * 40 + [1] * 10)  # 25 of 40 in an epoch
    first, second = (epoch_order(1, epoch, labels) for epoch in (0, 1))
    assert set(first[first < 40]) | set(second[second < 40]) == set(range(40))
    assert len(set(first[first < 40])) == 25


def test_classes_are_not_in_blocks():
    labels = np.repeat(np.arange(4), 100)
    order = labels[epoch_order(0, 0, labels)]
    # 400 in random order: 300 changes expected, standard deviation below 10
    assert 250 < (np.diff(order) != 0).sum() < 350


def test_any_part_can_be_made_again():
    labels = shuffled(LABELS)
    run = [record for epoch in range(4) for record in epoch_order(0, epoch, labels).tolist()]
    resumed = epoch_order(0, 2, labels).tolist()[5:] + epoch_order(0, 3, labels).tolist()
    assert run[2 * len(labels) + 5 :] == resumed


def test_occurrences():
    assert occurrences(np.array([3, 1, 3, 3, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]
    assert occurrences(np.arange(5)).tolist() == [0] * 5
    labels = shuffled(LABELS)
    order = epoch_order(0, 0, labels)
    pairs = set(zip(order.tolist(), occurrences(order).tolist(), strict=True))
    assert len(pairs) == len(order)
