import csv
import io
import json
import math
import subprocess
import sys
import tracemalloc
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn import report
from video_gn.errors import RunError
from video_gn.report import _analysis, _html, _npz, _plots, _read, write_report
from video_gn.report._analysis import Predictions
from video_gn.report._plots import Axis, Curve, line_chart

CLASSES = ["bend", "jack", "<b>&\"'</b>", "走路", "a|b", "class 10", "class 2"]
NUM_CLIPS, NUM_CROPS = 4, 2
METRICS = "step,epoch,lr,train/loss,val/loss,val/top1,val/top5\n"


def make_test(directory, *, num_videos=30, labelled=True, classes=CLASSES, failed=(), seed=0):
    """test/ of a run, written the way the test command writes it; returns labels and scores (V, K, Y)."""
    rng = np.random.default_rng(seed)
    folder = directory / "test"
    folder.mkdir(parents=True, exist_ok=True)
    labels = rng.integers(len(classes), size=num_videos) if labelled else np.full(num_videos, -1)
    scores = rng.random((num_videos, NUM_CLIPS * NUM_CROPS, len(classes)))
    scores[np.arange(num_videos), :, labels] += 0.4
    scores = (scores / scores.sum(2, keepdims=True)).astype(np.float32)
    np.savez(folder / "scores.npz", video_ids=np.arange(num_videos), labels=labels, scores=scores)
    mean = scores.astype(np.float64).mean(1)
    order = np.argsort(-mean, axis=1, kind="stable")[:, :5]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["video", "label", "pred", "score", "top5", "num_views"])
        for i in range(num_videos):
            label = classes[labels[i]] if labelled else ""
            best = [classes[j] for j in order[i]]
            writer.writerow([f"data/<v> {i}.mp4", label, best[0], f"{mean[i].max():.6f}", "|".join(best), 8])
    metrics = {
        "top1": float((order[:, 0] == labels).mean()) if labelled else None,
        "top5": float((order == labels[:, None]).any(1).mean()) if labelled else None,
        "mean_class_accuracy": 0.5 if labelled else None,
        "num_videos": num_videos + len(failed),
        "num_failed": len(failed),
        "coverage": num_videos / (num_videos + len(failed)),
        "num_clips": NUM_CLIPS,
        "num_crops": NUM_CROPS,
        "failed": [{"path": path, "reason": reason} for path, reason in failed],
        "checkpoint": f"{directory}/checkpoints/best.ckpt",
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    return labels, scores


def make_training(directory, num_steps=50):
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, num_steps + 1):
        val = f"{2 / step},{step / 100},{step / 60}" if step % 10 == 0 else ",,"
        lines.append(f"{step},{(step - 1) // 10},{0.1 if step < 30 else 0.001},{3 / step},{val}\n")
    (directory / "metrics.csv").write_text(METRICS + "".join(lines))
    (directory / "config.yaml").write_text(
        "seed_everything: 7\ndata: {clip: {num_frames: 16, stride: 2}, batch_size: 8, train: '<videos>'}\n"
        "model:\n  net: {class_path: video_gn.models.i3d, init_args: {depth: 50, norm: group, num_groups: 32}}\n"
    )


def page_of(directory):
    return write_report(directory).read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Tags must nest and close, ids be unique, links stay inside the page, and nothing be loaded or run."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base"), tag
        assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name in names), attrs
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name == "href"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ("path", "rect", "circle"), tag

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def checked(page):
    """Text of a page that has passed the checks."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.links
    assert {link[1:] for link in checker.links} == set(checker.ids)
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page
    rest = page
    while "<svg" in rest:
        start = rest.index("<svg")
        end, depth = start, 0
        while True:  # charts hold inner svgs
            opened, closed = rest.find("<svg", end + 1), rest.find("</svg>", end + 1)
            if 0 <= opened < closed:
                depth, end = depth + 1, opened
            elif depth:
                depth, end = depth - 1, closed
            else:
                break
        image = rest[start : closed + 6]
        assert "nan" not in image.split(">")[0]
        ElementTree.fromstring(image)
        rest = rest[closed + 6 :]
    return " ".join("".join(checker.text).split())


# ---- the page ----------------------------------------------------------------------------------


def test_the_page_of_a_whole_run(tmp_path):
    run = tmp_path / "gn <8>"
    make_training(run)
    labels, scores = make_test(run, failed=[("x/<i>broken</i>.mp4", "no video stream"), ("y.mp4", "is empty")])
    mean = scores.astype(np.float64).mean(1)
    top1 = float((mean.argmax(1) == labels).mean())

    page = page_of(run)
    text = checked(page)

    assert (run / "report.html") == write_report(run)
    assert f"top-1{100 * top1:.1f}%" in text
    assert "coverage93.75%30 of 32 videos read" in text
    assert "views of a video4 × 24 clips, 2 crops of each" in text
    assert "ResNet-50 I3D · group norm, 32 groups · clips of 16 frames, stride 2 · batch 8 a process" in text
    assert "50 optimizer steps, 5 epochs begun; training loss 0.06 at the last logged step" in text
    assert "best validation top-1 50.0% at step 50 (epoch 5), last 50.0%" in text
    assert "x/<i>broken</i>.mp4no video stream" in text
    assert "<b>&\"'</b>" in text
    assert "<i>broken" not in page
    assert "seed7" in text
    assert f"video-gn fit -c '{run}/config.yaml' --run_dir '{run}-again'" in text
    assert f"video-gn test -c '{run}/test/config.yaml' --run_dir '{run}'" in text
    assert f"--checkpoint '{run}/checkpoints/best.ckpt'" in text
    for title in ("Training", "Views and scores", "Confusions", "Classes", "Most confident mistakes", "Failed videos"):
        assert f"<h2>{title}</h2>" in page
    assert "files may come from different tests" not in text
    assert "prefers-color-scheme: dark" in page


def test_the_same_files_give_the_same_page_and_nothing_else_is_left(tmp_path):
    make_training(tmp_path)
    make_test(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    assert page_of(tmp_path) == page_of(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} - before == {"report.html"}


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    make_training(tmp_path)
    old = page_of(tmp_path)
    make_training(tmp_path, num_steps=90)

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_no_directory_and_an_empty_one(tmp_path):
    with pytest.raises(RunError, match=r"run_dir must be a directory, got '.*nowhere'\. Give the --run_dir"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(RunError, match=r"run_dir must hold at least one of config.yaml, .*none of them. Train or test"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", list(_read.FILES))
def test_each_file_alone_and_each_file_missing(tmp_path, name):
    whole = tmp_path / "whole"
    make_training(whole)
    make_test(whole)
    alone = tmp_path / "alone"
    (alone / name).parent.mkdir(parents=True)
    (alone / name).write_bytes((whole / name).read_bytes())
    text = checked(page_of(alone))
    assert "5 files are missing" in text
    assert "cannot be read" not in text
    (whole / name).unlink()
    text = checked(page_of(whole))
    assert "1 file is missing" in text
    assert f"{name}{_read.FILES[name]}missing" in text


@pytest.mark.parametrize("name", list(_read.FILES))
@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.97])
def test_a_file_that_was_cut_short_is_no_end(tmp_path, name, part):
    make_training(tmp_path)
    make_test(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * part)])
    checked(page_of(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.yaml", b"a: [1,", "config.yaml cannot be read: ParserError"),
        ("config.yaml", b"- 1\n", "config.yaml cannot be read: ValueError: it must hold a mapping, not list"),
        ("test/metrics.json", b"[1]", "it must hold an object, not list"),
        ("test/metrics.json", b"\xff\xfe", "test/metrics.json cannot be read: UnicodeDecodeError"),
        ("metrics.csv", b"a,b\n1,2\n", "metrics.csv cannot be read: KeyError: 'step'"),
        ("metrics.csv", METRICS.encode() + b"1,0,x,,,,\n", "metrics.csv cannot be read: ValueError"),
        ("metrics.csv", METRICS.encode() + b"1,0,1,1,1,1,1,1\n", "metrics.csv cannot be read: TypeError"),
        ("test/predictions.csv", b"", "line 1: its columns must hold video, label, pred, score, top5, num_views"),
        ("test/scores.npz", b"PK", "test/scores.npz cannot be read: ValueError: it must be a whole npz archive"),
    ],
)
def test_damage_is_told(tmp_path, name, content, told):
    make_training(tmp_path)
    make_test(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert told in checked(page_of(tmp_path))


def test_values_of_wrong_types_in_metrics_json(tmp_path):
    make_test(tmp_path)
    (tmp_path / "test/metrics.json").write_text('{"top1": "good", "top5": NaN, "num_videos": null, "failed": [3, {}]}')
    assert "top-1–" in checked(page_of(tmp_path))


def test_before_the_test_the_validation_stands_at_the_top(tmp_path):
    make_training(tmp_path)
    text = checked(page_of(tmp_path))
    assert "best validation top-150.0%step 50, epoch 5" in text
    assert "Not tested yet" in text
    assert f"# test the best checkpoint video-gn test -c {tmp_path}/config.yaml --run_dir {tmp_path}" in text


def test_predictions_alone_still_give_accuracy(tmp_path):
    labels, scores = make_test(tmp_path)
    top1 = float((scores.astype(np.float64).mean(1).argmax(1) == labels).mean())
    (tmp_path / "test/metrics.json").unlink()
    text = checked(page_of(tmp_path))
    assert f"top-1{100 * top1:.1f}%" in text
    assert "Counted from test/predictions.csv alone" in text


def test_unlabelled_videos_get_predictions_and_no_accuracy(tmp_path):
    make_test(tmp_path, labelled=False)
    text = checked(page_of(tmp_path))
    assert "No tested video has a label" in text
    assert "95% interval" not in text
    assert "Predicted classes" in text
    assert "Confusions" not in text


def test_no_top5_under_five_classes(tmp_path):
    make_test(tmp_path, classes=["a", "b", "c"])
    metrics = json.loads((tmp_path / "test/metrics.json").read_text())
    (tmp_path / "test/metrics.json").write_text(json.dumps(metrics | {"top5": None}))
    text = checked(page_of(tmp_path))
    assert "top-5–no top-5 under 5 classes" in text
    assert "classvideostop-1predicted" in text


def test_files_of_different_tests_are_noticed(tmp_path):
    make_test(tmp_path)
    metrics = json.loads((tmp_path / "test/metrics.json").read_text())
    (tmp_path / "test/metrics.json").write_text(json.dumps(metrics | {"top1": 0.01}))
    assert "test/metrics.json says top-1 1.00%" in checked(page_of(tmp_path))


def test_many_classes_have_no_matrix_and_fold_their_table(tmp_path):
    classes = [f"class {i}" for i in range(60)]
    make_test(tmp_path, classes=classes, num_videos=400)
    page = page_of(tmp_path)
    text = checked(page)
    assert 'class="matrix"' not in page
    assert "60 classes are too many for a matrix" in text
    assert "All 60 classes" in text


def test_a_matrix_of_fifty_classes(tmp_path):
    labels, scores = make_test(tmp_path, classes=[f"class {i}" for i in range(50)], num_videos=400)
    page = page_of(tmp_path)
    checked(page)
    preds = scores.astype(np.float64).mean(1).argmax(1)
    pairs = list(zip(labels.tolist(), preds.tolist(), strict=True))
    assert page.count('class="right"') == len({p for p in pairs if p[0] == p[1]})
    assert page.count('class="wrong"') == len({p for p in pairs if p[0] != p[1]})
    label, pred = pairs[0]
    number, total = pairs.count(pairs[0]), labels.tolist().count(label)
    assert f"class {label} → class {pred}: {number} of {total} ({100 * number / total:.1f}%)</title>" in page


def test_many_failed_videos_are_grouped_and_cut(tmp_path):
    failed = [(f"v{i}.mp4", "is empty" if i % 3 else "no video stream") for i in range(600)]
    make_test(tmp_path, failed=failed)
    text = checked(page_of(tmp_path))
    assert "is empty400 no video stream200" in text
    assert "100 more: see test/metrics.json" in text
    assert "v499.mp4" in text
    assert "v500.mp4" not in text


def test_losses_that_are_not_finite(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS + "1,0,0.1,nan,,,\n2,0,0.1,inf,,,\n3,0,0.1,2.5,,,\n")
    text = checked(page_of(tmp_path))
    assert "The training loss was not finite in 2 logged steps, first at step 1." in text


def test_names_that_are_no_text_or_turn_the_line_around(tmp_path):
    make_test(tmp_path)
    path = tmp_path / "test/predictions.csv"
    rows = path.read_bytes().splitlines()
    rows[1] = b'"a\xe9\x01\xe2\x80\xaegpj.mp4",jack,bend,0.999,bend|jack,8'
    path.write_bytes(b"\n".join(rows) + b"\n")
    text = checked(page_of(tmp_path))
    assert r"a\xe9\x01\u202egpj.mp4" in text


def test_resumes_are_shown(tmp_path):
    make_training(tmp_path)
    (tmp_path / "config.resume-001.yaml").write_text("seed_everything: 8\n")
    text = checked(page_of(tmp_path))
    assert "This training was resumed" in text
    assert "config.resume-001.yaml, complete" in text


def test_torch_is_not_imported(tmp_path):
    make_training(tmp_path)
    make_test(tmp_path)
    code = (
        "import sys; from video_gn.report import write_report; write_report(sys.argv[1]);"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'torchvision', 'lightning', 'av'}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    assert report.__all__ == ["write_report"]


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
