import io
import math
import tracemalloc
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import NUM_CROPS, make_test

from video_gn.report import _html, _npz
from video_gn.report import analysis as _analysis
from video_gn.report import plots as _plots
from video_gn.report import reading as _read
from video_gn.report.analysis import Predictions
from video_gn.report.plots import Axis, Curve, line_chart

# ---- reading -----------------------------------------------------------------------------------


def test_predictions_are_read(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "video,label,pred,score,top5,num_views\n"
        "a.mp4,x,x,0.75,x|y|z,10\n"
        "b.mp4,,z,0.5,z|x|y,10\n"
        '"c, d.mp4",x,y,0.25,y|z|x,30\n'
        "e.mp4,w,y,0.5,y|z|x,30\n"
    )
    found = _read.read_predictions(path)
    assert found.videos == ["a.mp4", "b.mp4", "c, d.mp4", "e.mp4"]
    assert found.classes == ["w", "x", "y", "z"]
    assert found.labels.tolist() == [1, -1, 1, 0]
    assert found.preds.tolist() == [1, 3, 2, 2]
    assert found.scores.tolist() == [0.75, 0.5, 0.25, 0.5]
    assert found.ranks.tolist() == [1, 0, 3, 0]
    assert found.num_views.tolist() == [10, 10, 30, 30]
    assert (found.num_labelled, found.num_correct) == (3, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,b,c", "line 2: a row must have 6 fields, got 3"),
        ("a,b,c,high,c|b,1", "line 2: could not convert string to float: 'high'"),
        ("a,b,c,0.5,c|b,x", "line 2: invalid literal for int"),
    ],
)
def test_bad_rows_of_predictions(tmp_path, row, message):
    path = tmp_path / "p.csv"
    path.write_text(f"video,label,pred,score,top5,num_views\n{row}\n")
    with pytest.raises(ValueError, match=message):
        _read.read_predictions(path)


def test_rank_in_top5():
    assert _read.rank_in_top5("", "a", "a|b") == 0
    assert _read.rank_in_top5("a", "a", "a|b") == 1
    assert _read.rank_in_top5("c", "a", "a|b|c|d|e") == 3
    assert _read.rank_in_top5("f", "a", "a|b|c|d|e") == 0
    assert _read.rank_in_top5("b", "a", "a|bb|cb") == 0
    # Names with the separator inside are found; where one stands before, the place is too high at worst.
    assert _read.rank_in_top5("a|b", "c", "c|a|b|d") == 2
    assert _read.rank_in_top5("d", "c", "c|a|b|d|e|f") == 4


def naive_curve(labels, scores, num_crops):
    videos, views, _ = scores.shape
    clips = views // num_crops
    keep = [v for v in range(videos) if labels[v] >= 0]
    single = np.mean([[scores[v, k].argmax() == labels[v] for k in range(views)] for v in keep])
    accuracies = []
    for number in range(1, clips + 1):
        chosen = [math.floor((i + 0.5) * clips / number) for i in range(number)]
        right = 0
        for v in keep:
            total = np.zeros(scores.shape[2])
            for clip in chosen:
                for crop in range(num_crops):
                    total += scores[v, clip * num_crops + crop].astype(np.float64)
            right += total.argmax() == labels[v]
        accuracies.append(right / len(keep))
    return single, accuracies


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 10**9])
def test_view_curve_is_that_of_a_naive_loop(tmp_path, monkeypatch, save, chunk_bytes):
    labels, scores = make_test(tmp_path, num_videos=23)
    labels[[3, 7]] = -1
    save(tmp_path / "s.npz", video_ids=np.arange(23), labels=labels, scores=scores)
    monkeypatch.setattr(_npz, "_CHUNK_BYTES", chunk_bytes)
    curve = _read.read_view_curve(tmp_path / "s.npz", num_crops=NUM_CROPS)
    single, accuracies = naive_curve(labels, scores, NUM_CROPS)
    assert curve.single_view == pytest.approx(single, abs=1e-12)
    assert curve.accuracies == pytest.approx(accuracies, abs=1e-12)
    assert curve.counts == (1, 2, 3, 4)
    assert (curve.num_videos, curve.num_labelled, curve.num_classes) == (23, 21, 7)
    assert (curve.num_clips, curve.num_crops, curve.num_not_finite) == (4, 2, 0)


def test_view_curve_of_odd_files(tmp_path):
    labels, scores = make_test(tmp_path, num_videos=6)
    path = tmp_path / "s.npz"
    np.savez(path, video_ids=np.arange(6), labels=np.full(6, -1), scores=scores)
    assert _read.read_view_curve(path, num_crops=1) is None
    np.savez(path, video_ids=np.arange(6), labels=labels, scores=scores)
    assert _read.read_view_curve(path, num_crops=3).num_clips == 8  # 3 does not divide 8 views
    scores[2, 1, 0] = np.nan
    np.savez(path, video_ids=np.arange(6), labels=labels, scores=scores)
    assert _read.read_view_curve(path, num_crops=1).num_not_finite == 1
    many = np.zeros((1, 100, 2), dtype=np.float32)
    np.savez(path, video_ids=np.arange(1), labels=np.zeros(1, dtype=int), scores=many)
    curve = _read.read_view_curve(path, num_crops=1)
    assert len(curve.counts) == 20
    assert curve.counts[0] == 1
    assert curve.counts[-1] == 100


def test_scores_with_the_header_of_the_test_command(tmp_path):
    labels, scores = make_test(tmp_path)
    path = tmp_path / "s.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in (("video_ids", np.arange(30)), ("labels", labels)):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
        with archive.open("scores.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": scores.shape}
            np.lib.format.write_array_header_2_0(file, header)
            file.write(scores.tobytes())
    assert _read.read_view_curve(path, num_crops=2) == _read.read_view_curve(tmp_path / "test/scores.npz", num_crops=2)


def test_scores_are_not_loaded_whole(tmp_path, monkeypatch):
    scores = np.zeros((1600, 10, 1000), dtype=np.float32)  # 64 MB
    path = tmp_path / "s.npz"
    np.savez_compressed(path, video_ids=np.arange(1600), labels=np.zeros(1600, dtype=int), scores=scores)
    del scores
    monkeypatch.setattr(_npz, "_CHUNK_BYTES", 2**20)
    tracemalloc.start()
    assert _read.read_view_curve(path, num_crops=1).accuracies[-1] == 1.0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 1 MB of float32 is 2 MB of float64, held a few times over.
    assert peak < 16e6


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


GOOD = {"video_ids": np.arange(2), "labels": np.zeros(2, dtype=int), "scores": np.zeros((2, 3, 4), dtype=np.float32)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "it must hold video_ids, labels and scores"),
        ({"scores": np.zeros((2, 3))}, r"scores must be floats of shape \(V, K, Y\) in C order, got float64 \(2, 3\)"),
        ({"scores": np.zeros((2, 3, 4), dtype=int)}, "scores must be floats"),
        ({"scores": np.asfortranarray(np.zeros((2, 3, 4)))}, "scores must be floats"),
        ({"scores": np.zeros((2, 0, 4))}, "at least one view and one class"),
        ({"scores": np.zeros((3, 3, 4))}, "must be of one length, got 2, 2 and 3"),
        ({"labels": np.zeros(2)}, r"labels must be integers of shape \(V,\), got float64 \(2,\)"),
        ({"labels": np.array(["a", "b"], dtype=object)}, "Object arrays cannot be loaded"),
        ({"labels": np.array([0, 4])}, "labels must be below the 4 classes of scores, got 4"),
    ],
)
def test_scores_of_other_shapes(tmp_path, changes, message):
    arrays = {name: value for name, value in (GOOD | changes).items() if value is not None}
    path = save(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        _read.read_view_curve(path, num_crops=1)


def test_scores_in_an_unknown_header_version(tmp_path):
    path = tmp_path / "s.npz"
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, GOOD["scores"], version=(3, 0))
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("video_ids", "labels"):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, GOOD[name])
        archive.writestr("scores.npy", buffer.getvalue())
    with pytest.raises(ValueError, match=r"scores must be in npy format 1.0 or 2.0, got \(3, 0\)"):
        _read.read_view_curve(path, num_crops=1)


def test_scores_that_end_too_soon_or_are_damaged(tmp_path):
    path = tmp_path / "s.npz"
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, GOOD["scores"])
    for name, content, message in (
        ("short", buffer.getvalue()[:-50], "its scores end after 0 of 2 videos"),
        ("damaged", buffer.getvalue(), "it is damaged"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for key in ("video_ids", "labels"):
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, GOOD[key])
            archive.writestr("scores.npy", content)
        if name == "damaged":
            data = bytearray(path.read_bytes())
            data[data.index(b"PK\x01\x02") - 20] ^= 1  # before the directory at the end: a bit of the scores
            path.write_bytes(bytes(data))
        with pytest.raises(ValueError, match=message):
            _read.read_view_curve(path, num_crops=1)


def test_scores_with_a_damaged_small_array(tmp_path):
    path = save(tmp_path / "s.npz", **GOOD)
    data = bytearray(path.read_bytes())
    data[data.index(b"labels.npy") + 160] ^= 1  # past the names and the header: a label
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"it is damaged \(Bad CRC-32"):
        _read.read_view_curve(path, num_crops=1)


# ---- figures -----------------------------------------------------------------------------------


def test_wilson_interval():
    # Figures of Wilson's formula worked by hand with z = 1.96.
    assert _analysis.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert _analysis.wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-5)
    assert _analysis.wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=30), st.floats(0.5, 50))
def test_smooth_is_a_weighted_mean_of_what_came_before(values, window):
    decay = 1 - 1 / max(1, window)
    found = _analysis.smooth(np.array(values, dtype=np.float64), window)
    for t in range(len(values)):
        weights = [(decay ** (t - s), values[s]) for s in range(t + 1) if math.isfinite(values[s])]
        total = math.fsum(w for w, _ in weights)
        if total == 0:
            assert math.isnan(found[t]) or window <= 1
        else:
            size = max(abs(v) for _, v in weights)
            # Rounding of at most 30 sums of values of that size.
            assert found[t] == pytest.approx(math.fsum(w * v for w, v in weights) / total, rel=1e-9, abs=1e-12 * size)


def predictions_of(labels, preds, ranks=None, scores=None, num_classes=None):
    size = num_classes or max([*labels, *preds]) + 1
    return Predictions(
        videos=[f"{i}.mp4" for i in range(len(labels))],
        classes=[f"c{i}" for i in range(size)],
        labels=np.array(labels, dtype=np.int64),
        preds=np.array(preds, dtype=np.int64),
        scores=np.array(scores if scores is not None else [0.5] * len(labels), dtype=np.float64),
        ranks=np.array(ranks if ranks is not None else [0] * len(labels), dtype=np.int64),
        num_views=np.ones(len(labels), dtype=np.int64),
    )


@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=60))
def test_counts_are_those_of_naive_loops(rows):
    labels, preds, ranks = (list(column) for column in zip(*rows, strict=True))
    found = predictions_of(labels, preds, ranks, num_classes=7)
    pairs = {}
    for label, pred in zip(labels, preds, strict=True):
        if label >= 0:
            pairs[label, pred] = pairs.get((label, pred), 0) + 1
    assert {(a, b): n for a, b, n in _analysis.count_pairs(found)} == pairs

    table = _analysis.class_rows(found)
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

    confused = _analysis.confused_pairs(found, 5)
    expected = sorted((n for (a, b), n in pairs.items() if a != b), reverse=True)[:5]
    assert [pair.count for pair in confused] == expected
    assert all(pairs[pair.label, pair.pred] == pair.count for pair in confused)
    assert all(pair.num_videos == labels.count(pair.label) for pair in confused)


def test_confident_mistakes_come_by_score():
    found = predictions_of([0, 1, -1, 1, 0, 1], [0, 0, 1, 0, 1, 0], scores=[0.99, 0.3, 0.98, 0.8, math.nan, 0.8])
    assert _analysis.confident_mistakes(found, 10) == [3, 5, 1, 4]
    assert _analysis.confident_mistakes(found, 2) == [3, 5]


def test_calibration_is_that_of_a_naive_loop():
    rng = np.random.default_rng(0)
    labels, preds = rng.integers(-1, 3, 200).tolist(), rng.integers(0, 3, 200).tolist()
    scores = [*rng.random(195), 0.0, 0.1, 1.0, math.nan, 0.2]
    found = _analysis.calibrate(predictions_of(labels, preds, scores=scores))
    bins = [[] for _ in range(10)]
    for label, pred, score in zip(labels, preds, scores, strict=True):
        if label >= 0 and math.isfinite(score):
            place = next(b for b in range(10) if score <= (b + 1) / 10)
            bins[place].append((score, label == pred))
    assert found.counts.tolist() == [len(b) for b in bins]
    total = sum(len(b) for b in bins)
    error = sum(abs(sum(r for _, r in b) - sum(s for s, _ in b)) for b in bins) / total
    assert found.expected_error == pytest.approx(error, abs=1e-12)
    assert _analysis.calibrate(predictions_of([-1], [0])) is None


def test_natural_order_and_spread():
    assert _analysis.natural_order(["run10", "Run2", "a", "run1", "²", "10", "9"]) == [
        "9", "10", "a", "run1", "Run2", "run10", "²",
    ]  # fmt: skip
    assert _analysis.spread(1, 10) == [5]
    assert _analysis.spread(2, 10) == [2, 7]
    assert _analysis.spread(3, 10) == [1, 5, 8]
    assert _analysis.spread(10, 10) == list(range(10))
    assert _analysis.spread(1, 1) == [0]


# ---- charts and html ---------------------------------------------------------------------------


def test_ticks():
    assert _plots.nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert _plots.nice_ticks(0.13, 0.61) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    assert _plots.nice_ticks(-3, 3, whole=True) == [-2, 0, 2]
    assert _plots.nice_ticks(1, 2, whole=True) == [1, 2]
    assert _plots.nice_ticks(5, 5) == [5]
    assert _plots.log_ticks(1e-4, 1e-1) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert _plots.log_ticks(1e-20, 1e-1) == pytest.approx([10.0**e for e in range(-20, 0, 2)])
    assert _plots.log_ticks(0.9, 12) == pytest.approx([1, 2, 5, 10])


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.0, 0.1, "0"),
        (0.25, 0.05, "0.25"),
        (0.5, 0.25, "0.5"),
        (20.0, 20.0, "20"),
        (1500.0, 500.0, "1,500"),
        (20000.0, 20000.0, "20k"),
        (12500.0, 2500.0, "12.5k"),
        (20010.0, 2.0, "20,010"),
        (3e6, 1e6, "3M"),
        (2.5e6, 5e5, "2.5M"),
        (1e-5, 0.0, "1e-5"),
        (0.0002, 0.0001, "0.0002"),
        (-0.5, 0.5, "-0.5"),
        (0.01, 0.0, "0.01"),
    ],
)
def test_numbers_of_ticks(value, step, text):
    assert _plots.format_number(value, step) == text


def test_thinning_keeps_extremes_ends_and_gaps():
    rng = np.random.default_rng(0)
    x, y = np.arange(40000), rng.normal(size=40000)
    y[12345], y[777], y[30000] = 99.0, -99.0, math.nan
    thin_x, thin_y = _plots.thin(x, y, 100)
    assert len(thin_x) <= 500
    assert (np.diff(thin_x) > 0).all()
    assert {0, 39999, 12345, 777, 30000} <= set(thin_x.tolist())
    np.testing.assert_array_equal(y[thin_x], thin_y)
    short = _plots.thin(x[:300], y[:300], 100)
    np.testing.assert_array_equal(short[0], x[:300])


def numbers_of(path):
    return [float(word) for word in path.replace("M", " ").replace("L", " ").split()]


VALUES = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None)
@given(
    st.lists(VALUES, min_size=1, max_size=40),
    st.sampled_from(["number", "percent", "log"]),
    st.sampled_from(["line", "faint", "dots"]),
)
def test_any_values_make_a_chart_with_finite_places(values, kind, style):
    curve = Curve("<a>", np.arange(len(values)), np.array(values), 1, style)
    chart = line_chart('"t"', [curve], x=Axis("x", whole=True), y=Axis("y", kind))
    figure = ElementTree.fromstring(chart)
    # No float32 is beyond 1e60; what is counts as not finite.
    drawn = any(abs(v) < 1e60 and (kind != "log" or v > 1e-60) for v in values)
    assert ("No finite value" in chart) == (not drawn)
    for element in figure.iter():
        for name in ("x", "y", "cx", "cy"):
            if name in element.attrib:
                assert math.isfinite(float(element.attrib[name]))
    for path in figure.iter("path"):
        if path.attrib["d"].startswith("M") and not set("HVv") & set(path.attrib["d"]):
            assert all(math.isfinite(number) for number in numbers_of(path.attrib["d"]))


def test_a_gap_breaks_the_line_and_a_lone_point_is_a_dot():
    y = np.array([1.0, 2.0, math.nan, 3.0, math.nan, 1.0, 2.0])
    chart = line_chart("t", [Curve("c", np.arange(7), y, 1)], x=Axis("x"), y=Axis("y"))
    figure = ElementTree.fromstring(chart)
    line = next(p for p in figure.iter("path") if p.attrib["d"].count("M") == 3)
    assert line.attrib["d"].count("L") == 2
    assert [c.find("title").text for c in figure.iter("circle")] == ["x 3: c 3"]


def test_places_in_a_chart():
    curve = Curve("c", np.array([0, 10]), np.array([0.0, 1.0]), 1)
    chart = line_chart("t", [curve], x=Axis("x"), y=Axis("y", limits=(0.0, 1.0)))
    line = ElementTree.fromstring(chart).findall(".//g/path")[0]
    # left 66, right 540 - 12, bottom 290 - 42, top 10
    assert line.attrib["d"] == "M66.0 248.0L528.0 10.0"


def test_peaks_of_raw_values_do_not_stretch_the_axis():
    y = np.ones(1000)
    y[::2] = 2.0
    y[500] = 500.0
    chart = line_chart("t", [Curve("c", np.arange(1000), y, 1, "faint")], x=Axis("x"), y=Axis("y"))
    assert "Above the frame: 1 raw value, up to 500." in chart


def test_dots_tell_their_values():
    curve = Curve("top-1", np.array([10, 20]), np.array([0.25, 0.5]), 3, "dots")
    hint = ["step 10, epoch 1", "step 20, epoch 2"]
    chart = line_chart("t", [curve], x=Axis("step"), y=Axis("a", "percent"), hint=hint)
    assert "<title>step 10, epoch 1: top-1 25.0%</title>" in chart
    assert "<title>step 20, epoch 2: top-1 50.0%</title>" in chart


def test_escaping_and_words():
    assert _html.esc('<a href="x">&\'') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"
    assert _html.esc(_html.Markup("<b>")) == "<b>"
    assert _html.esc("a\tb\n\x00\x9f\udce9\ud800\ufffe") == "a\tb\n\\x00\\x9f\\xe9\\ud800\\ufffe"
    assert _html.percent(0.7349) == "73.5%"
    assert _html.percent(None) == _html.percent(math.nan) == "–"
    assert _html.count(1, "video") == "1 video"
    assert _html.count(19761, "video") == "19,761 videos"
    assert _html.count(2, "class", "classes") == "2 classes"
    assert _html.shorten("abcdef", 1000, 11) == "abcdef"
    assert _html.shorten("abcdef" * 9, 40, 11) == "abcde…"
    assert _html.shorten("走路跑步跳跃", 40, 11) == "走路跑…"
