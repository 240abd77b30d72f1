"""Accuracy by video against hand-written cases, a naive loop, and real processes."""

import copy
import math
import pickle
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from video_gn.evaluation.accuracy import MultiViewAccuracy

Y = 7


def make_videos(num_videos: int, *, seed: int = 0, num_classes: int = Y):
    """Ids without order, sums over 1 to 10 views, every fifth video without a label."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(10 * num_videos)[:num_videos]
    num_views = rng.integers(1, 11, num_videos)
    sums = np.zeros((num_videos, num_classes), dtype=np.float32)
    for row, views in enumerate(num_views):
        for _ in range(views):
            logits = rng.normal(size=num_classes)
            sums[row] += (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    labels = rng.integers(0, num_classes, num_videos)
    labels[::5] = -1
    return tuple(torch.from_numpy(a) for a in (ids, sums, labels, num_views))


def feed(metric, videos, rows):
    for part in rows:
        ids, sums, labels, views = (t[part] for t in videos)
        metric.update(ids, sums, labels, views)


def naive(videos, num_classes: int = Y):
    ids, sums, labels, views = (t.tolist() for t in videos)
    top1 = top5 = n = 0
    nll, by_class = 0.0, {}
    for row, label in enumerate(labels):
        if label < 0:
            continue
        n += 1
        scores = [s / views[row] for s in sums[row]]
        before = [c for c in range(num_classes) if c != label and scores[c] >= scores[label]]
        top1 += len(before) < 1
        top5 += len(before) < 5
        nll -= math.log(scores[label])
        by_class.setdefault(label, []).append(len(before) < 1)
    return {
        "top1": top1 / n,
        "top5": top5 / n if num_classes >= 5 else None,
        "mean_class_accuracy": sum(sum(v) / len(v) for v in by_class.values()) / len(by_class),
        "nll": nll / n,
        "num_videos": len(ids),
        "num_labelled": n,
    }


def one_hot(*classes, num_classes=Y):
    return torch.eye(num_classes)[list(classes)]


def ids(*values):
    return torch.tensor(values, dtype=torch.int64)


def test_by_hand():
    metric = MultiViewAccuracy(3)
    # Two views each. Video 4: right. Video 2: wrong. Video 9: right once averaged. Video 7: no label.
    sums = torch.tensor([[1.5, 0.25, 0.25], [1.0, 0.75, 0.25], [0.25, 0.25, 1.5], [2.0, 0.0, 0.0]])
    metric.update(ids(4, 2, 9, 7), sums, ids(0, 1, 2, -1), 2)
    results = metric.compute()
    assert results == {
        "top1": 2 / 3,
        "top5": None,
        "mean_class_accuracy": 2 / 3,
        "nll": pytest.approx(-(math.log(0.75) + math.log(0.375) + math.log(0.75)) / 3, rel=1e-15),
        "num_videos": 4,
        "num_labelled": 3,
    }
    assert all(v is None or type(v) in (int, float) for v in results.values())
    rows = metric.rows()
    assert rows.video_ids.tolist() == [2, 4, 7, 9]
    assert rows.labels.tolist() == [1, 0, -1, 2]
    assert rows.num_views.tolist() == [2, 2, 2, 2]
    assert rows.best.tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [2, 0, 1]]
    assert rows.best_scores.tolist() == [0.5, 0.75, 1.0, 0.75]
    assert rows.label_scores.tolist() == [0.375, 0.75, 0.0, 0.75]
    assert rows.label_places.tolist() == [1, 0, 0, 0]
    assert all(a.dtype == (np.float64 if n.endswith("_scores") else np.int64) for n, a in vars(rows).items())


@pytest.mark.parametrize("num_classes", [2, 4, 5, 7])
def test_against_a_loop(num_classes):
    videos = make_videos(60, seed=num_classes, num_classes=num_classes)
    metric = MultiViewAccuracy(num_classes)
    feed(metric, videos, [slice(0, 1), slice(1, 30), slice(30, 60)])
    results, expected = metric.compute(), naive(videos, num_classes)
    # The loop adds one by one, in float64: 60 roundings of 1e-16.
    for name in ("nll", "mean_class_accuracy"):
        assert results.pop(name) == pytest.approx(expected.pop(name), rel=1e-13)
    assert results == expected


def test_mean_class_accuracy_is_over_classes_that_have_a_video():
    metric = MultiViewAccuracy(Y)
    # class 0: 3 of 4 right; class 5: 0 of 1; the others have no video
    metric.update(torch.arange(5), one_hot(0, 0, 0, 1, 1), ids(0, 0, 0, 0, 5), 1)
    assert metric.compute()["mean_class_accuracy"] == (3 / 4 + 0) / 2
    assert metric.compute()["top1"] == 3 / 5


def test_a_tie_counts_against_the_network():
    metric = MultiViewAccuracy(Y, top_k=(1, 5, 6, 7))
    metric.update(ids(0, 1), torch.full((2, Y), 1 / Y), ids(0, 6), 1)
    results = metric.compute()
    assert [results[f"top{k}"] for k in (1, 5, 6, 7)] == [0.0, 0.0, 0.0, 1.0]
    metric.reset()
    # two classes share the first place: either label is in the top 2, neither in the top 1
    metric = MultiViewAccuracy(4, top_k=(1, 2))
    metric.update(ids(0, 1), torch.tensor([[0.4, 0.4, 0.1, 0.1]] * 2), ids(0, 1), 1)
    results = metric.compute()
    assert (results["top1"], results["top2"]) == (0.0, 1.0)


def test_a_score_of_zero_keeps_the_loss_finite():
    metric = MultiViewAccuracy(Y)
    metric.update(ids(0), one_hot(0), ids(1), 1)
    assert metric.compute()["nll"] == pytest.approx(-math.log(2**-126), rel=1e-15)


def test_no_videos_and_no_labels():
    metric = MultiViewAccuracy(Y)
    nothing = {"top1": None, "top5": None, "mean_class_accuracy": None, "nll": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.compute() == {**nothing, "num_videos": 0, "num_labelled": 0}
    assert metric.rows().best.shape == (0, min(5, Y))
    metric.update(ids(), torch.zeros((0, Y)), ids(), 10)
    metric.update(ids(3, 1), one_hot(2, 2), ids(-1, -1), 1)
    assert metric.compute() == {**nothing, "num_videos": 2, "num_labelled": 0}
    assert metric.rows().video_ids.tolist() == [1, 3]


def test_any_order_of_updates_gives_the_same_bits():
    videos = make_videos(200)
    first = MultiViewAccuracy(Y)
    feed(first, videos, [slice(None)])
    for seed in range(5):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(200))
        metric = MultiViewAccuracy(Y)
        feed(metric, videos, order.split(1 + 13 * seed))
        assert metric.compute() == first.compute()
        assert rows_equal(metric.rows(), first.rows())


def rows_equal(a, b) -> bool:
    return vars(a).keys() == vars(b).keys() and all(np.array_equal(v, getattr(b, n)) for n, v in vars(a).items())


@pytest.mark.parametrize("num_classes", [1, 3, 400])
def test_rows_are_those_of_float64_scores(num_classes):
    videos = make_videos(50, num_classes=num_classes)
    metric = MultiViewAccuracy(num_classes)
    feed(metric, videos, [slice(None)])
    ids_V, sums_VY, labels_V, views_V = (t.numpy()[np.argsort(videos[0].numpy())] for t in videos)
    scores_VY = sums_VY.astype(np.float64) / views_V[:, None]
    rows = metric.rows()
    assert np.array_equal(rows.video_ids, ids_V) and np.array_equal(rows.labels, labels_V)
    assert np.array_equal(rows.best, np.argsort(-scores_VY, axis=1, kind="stable")[:, :5])
    assert np.array_equal(rows.best_scores, scores_VY.max(1))
    own_V = scores_VY[np.arange(50), labels_V]
    assert np.array_equal(rows.label_scores, np.where(labels_V < 0, 0, own_V))
    higher_V = [sum(score >= own for score in row) - 1 for row, own in zip(scores_VY, own_V, strict=True)]
    assert rows.label_places[labels_V >= 0].tolist() == [
        n for n, label in zip(higher_V, labels_V, strict=True) if label >= 0
    ]
    assert metric.best[0].untyped_storage().nbytes() == 50 * min(5, num_classes) * 8


# ---- life of a metric --------------------------------------------------------------------------


def test_reset_update_after_compute_pickle_and_deepcopy():
    videos = make_videos(40)
    whole = MultiViewAccuracy(Y)
    feed(whole, videos, [slice(None)])
    metric = MultiViewAccuracy(Y)
    feed(metric, videos, [slice(0, 15)])
    metric.compute()
    metric.rows()
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        feed(twin, videos, [slice(15, 40)])
        assert twin.compute() == whole.compute()
    assert metric.compute()["num_videos"] == 15
    metric.reset()
    assert metric.compute()["num_videos"] == 0
    feed(metric, videos, [slice(None)])
    assert metric.compute() == whole.compute()
    assert metric.state_dict() == {}


def test_forward_gives_the_batch_and_adds_it():
    videos = make_videos(40)
    whole, part, metric = (MultiViewAccuracy(Y) for _ in range(3))
    feed(whole, videos, [slice(None)])
    feed(part, videos, [slice(15, 40)])
    feed(metric, videos, [slice(0, 15)])
    assert metric(*(t[15:40] for t in videos)) == part.compute()
    assert metric.compute() == whole.compute()


def test_keeps_no_graph_and_no_alias_of_a_requires_grad_tensor():
    scores = one_hot(1, 2).requires_grad_()
    metric = MultiViewAccuracy(Y)
    metric.update(ids(0, 1), scores, ids(1, 1), 1)
    assert not metric.best_scores[0].requires_grad
    assert metric.compute()["top1"] == 0.5


@pytest.mark.needs_cuda
def test_on_a_device():
    videos = make_videos(100)
    here, there = MultiViewAccuracy(Y), MultiViewAccuracy(Y)
    feed(here, videos, [slice(None)])
    feed(there, videos, [slice(0, 30)])
    there.to("cuda")
    assert there.best_scores[0].device.type == "cuda"
    feed(there, tuple(t.cuda() for t in videos), [slice(30, 100)])
    assert there.compute() == here.compute()
    assert rows_equal(there.rows(), here.rows())
    empty = MultiViewAccuracy(Y).to("cuda")
    assert empty.compute()["num_videos"] == 0


# ---- processes ---------------------------------------------------------------------------------


def play(metric, updates, rank, world_size):
    """One scenario in one process: updates are rows of `make_videos(50)`."""
    videos = make_videos(50)
    feed(metric, videos, [torch.tensor(r, dtype=torch.int64) for r in updates])
    try:
        found = (metric.compute(), metric.rows(), metric.compute())
    except ValueError as error:
        metric.reset()
        return str(error)
    assert sum(len(t) for t in metric.video_ids) == sum(len(r) for r in updates)  # its own rows again
    # One more video on one process alone: if the others answered from a cache, it would wait for them.
    if rank == world_size - 1:
        metric.update(ids(10_000), one_hot(0), ids(0), 1)
    found = (*found, metric.compute())
    metric.reset()
    return found


def work(rank, world_size, scenarios, path, queue):
    torch.set_num_threads(1)
    # A process that waits for ever fails after half a minute; these take a second.
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=world_size, timeout=timedelta(seconds=30)
    )
    try:
        metric = MultiViewAccuracy(Y)
        queue.put((rank, [play(metric, shares[rank], rank, world_size) for shares in scenarios]))
    finally:
        distributed.destroy_process_group()


def spawn(tmp_path, world_size, scenarios):
    """For each scenario what each process found; starting processes is slow, so they play all of them."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    args = (world_size, scenarios, str(tmp_path / "store"), queue)
    processes = [context.Process(target=work, args=(rank, *args), daemon=True) for rank in range(world_size)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [[found[rank][i] for rank in range(world_size)] for i in range(len(scenarios))]


ALL = np.random.default_rng(7).permutation(50).tolist()


def assert_as_alone(processes):
    alone = MultiViewAccuracy(Y)
    feed(alone, make_videos(50), [slice(None)])
    for results, rows, again, last in processes:
        assert results == alone.compute() == again
        assert rows_equal(rows, alone.rows())
        assert last["num_videos"] == 51


def test_two_processes(tmp_path):
    unequal, none_in_the_first, none_at_all, twice = spawn(
        tmp_path,
        2,
        [
            [[ALL[:30], ALL[30:33]], [ALL[33:]]],
            [[], [ALL[:20], ALL[20:]]],
            [[], []],
            [[[0, 1, 2]], [[3, 0]]],
        ],
    )
    assert_as_alone(unequal)
    assert_as_alone(none_in_the_first)
    for results, rows, _, last in none_at_all:
        assert results["num_videos"] == 0 and results["top1"] is None
        assert rows.best.shape == (0, min(5, Y))
        assert last["num_videos"] == 1
    first = int(make_videos(50)[0][0])
    for message in twice:  # in both, so that neither waits for the other
        assert message.startswith(f"video_ids must be given once each, got {first} more than once")


@pytest.mark.slow
def test_three_processes_one_with_none(tmp_path):
    (processes,) = spawn(tmp_path, 3, [[[ALL[:1]], [], [ALL[1:40], ALL[40:]]]])
    assert_as_alone(processes)


# ---- callers' mistakes -------------------------------------------------------------------------


def test_a_video_given_twice():
    metric = MultiViewAccuracy(Y)
    metric.update(ids(3, 5, 8), one_hot(0, 1, 2), ids(0, 1, 2), 1)
    metric.update(ids(5, 9, 3), one_hot(0, 1, 2), ids(0, 1, 2), 1)
    for call in (metric.compute, metric.rows):
        with pytest.raises(ValueError, match="video_ids must be given once each, got 3, 5 more than once"):
            call()
    metric.reset()
    metric.update(torch.arange(20).repeat(2), one_hot(*[0] * 40), torch.zeros(40, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match=r"got 0, 1, 2, 3, 4, \.\.\. \(20 in all\) more than once"):
        metric.compute()


GOOD = {"video_ids": ids(11, 12), "scores_NY": one_hot(0, 1), "labels": ids(0, 1), "num_views": 1}


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (
            "video_ids",
            torch.tensor([1, 2], dtype=torch.int32),
            TypeError,
            "video_ids must be torch.int64, got torch.int32",
        ),
        ("scores_NY", one_hot(0, 1).double(), TypeError, "scores_NY must be torch.float32, got torch.float64"),
        ("scores_NY", one_hot(0, 1).bfloat16(), TypeError, "scores_NY must be torch.float32, got torch.bfloat16"),
        ("labels", torch.tensor([0.0, 1.0]), TypeError, "labels must be torch.int64, got torch.float32"),
        ("num_views", torch.tensor([1.0, 1.0]), TypeError, "num_views must be torch.int64, got torch.float32"),
        ("video_ids", ids(1), ValueError, r"scores_NY must be of shape \(1, 7\), got \(2, 7\)"),
        ("scores_NY", torch.eye(8)[:2], ValueError, r"scores_NY must be of shape \(2, 7\), got \(2, 8\)"),
        ("labels", ids(1, 2, 3), ValueError, r"labels must be of shape \(2,\), got \(3,\)"),
        ("num_views", ids(1), ValueError, r"num_views must be of shape \(2,\), got \(1,\)"),
        ("video_ids", ids(11, -1), ValueError, "video_ids must be at least 0; got video_ids -1 with labels 1"),
        (
            "labels",
            ids(7, 1),
            ValueError,
            r"labels must be in \[0, 7\), or -1 for none; got video_ids 11 with labels 7",
        ),
        ("labels", ids(0, -2), ValueError, "labels must be in .* got video_ids 12 with labels -2"),
        ("num_views", 0, ValueError, "num_views must be at least 1; got video_ids 11, 12 .* num_views 0, 0"),
        (
            "scores_NY",
            one_hot(0, 1) * torch.tensor([[1.0], [math.nan]]),
            ValueError,
            "scores must be finite.* video_ids 12",
        ),
        ("scores_NY", one_hot(0, 1) / torch.tensor([[0.0], [1.0]]), ValueError, "scores must be finite.* video_ids 11"),
        ("num_views", 3, ValueError, "scores must be sums of softmax scores .* video_ids 11, 12 .* add up to 1, 1"),
        ("scores_NY", 4 * one_hot(0, 1), ValueError, "scores must be sums of softmax scores .* add up to 4, 4"),
        (
            "scores_NY",
            torch.tensor([[2.0, -1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]),
            ValueError,
            "scores must be sums of softmax scores .* video_ids 11 with",
        ),
    ],
)
def test_bad_updates_name_the_videos_and_add_nothing(name, value, error, message):
    metric = MultiViewAccuracy(Y)
    with pytest.raises(error, match=message):
        metric.update(**{**GOOD, name: value})
    assert metric.compute()["num_videos"] == 0
    metric.update(**GOOD)
    assert metric.compute()["top1"] == 1.0


def test_bfloat16_softmax_scores_pass():
    torch.manual_seed(0)
    scores = torch.randn(32, 10, 400).bfloat16().softmax(-1).float().sum(1)
    metric = MultiViewAccuracy(400)
    metric.update(torch.arange(32), scores, torch.zeros(32, dtype=torch.int64), 10)
    assert metric.compute()["num_videos"] == 32
